"""The engine of a repository: its file for each configuration, and whether these say what the ONNX does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2f_export.doctor.findings import Finding, check_content, error, listed, warning
from m2f_export.doctor.model_configs import DEFAULT, Model, dims_fit, dtype
from m2f_export.doctor.onnx_checks import INPUT, Graph
from m2f_export.doctor.plan_checks import BUILD, check_plan

# Triton's names of the types, by ONNX's
TYPES = {"UINT8": "UINT8", "FLOAT": "FP32", "FLOAT16": "FP16", "INT32": "INT32", "INT64": "INT64", "DOUBLE": "FP64"}
PLAN, ONNX = "model.plan", "model.onnx"


def check_engine(engine: Model, graph: Graph | None, *, tensorrt_version: str | None) -> list[Finding]:
    """Check the engine's files, its configurations against each other, and against the ONNX where it can be read."""
    findings = _engine_files(engine)
    plan = engine.version / PLAN if engine.version is not None else None
    if plan is not None and plan.is_file():
        findings += check_plan(plan, tensorrt_version=tensorrt_version)
    findings += _configs_agree(engine)
    for name, config in engine.configs.items():
        where = engine.folder / name
        findings += _warmup(where, config, graph)
        if graph is not None:
            findings += _tensors(where, config, graph)
    return findings


def _needs(config: Any) -> tuple[str, ...]:
    """Return the files that a configuration of the engine loads."""
    if "tensorrt_plan" in (config.platform, config.backend) or config.backend == "tensorrt":
        return (config.default_model_filename or PLAN,)
    if config.platform == "onnxruntime_onnx" or config.backend == "onnxruntime":
        return (config.default_model_filename or ONNX,)
    return (config.default_model_filename or "model.py", ONNX)


def _engine_files(engine: Model) -> list[Finding]:
    if engine.version is None:
        return []
    missing = {
        name: [file for file in _needs(config) if not (engine.version / file).is_file()]
        for name, config in engine.configs.items()
    }
    usable = [name for name, files in missing.items() if not files]
    findings = []
    for name, files in missing.items():
        if not files:
            continue
        what = f"{listed(files)} is missing, which {name} needs"
        fix = f"m2f export --engine, or: {BUILD}"
        if PLAN not in files:
            fix = f"m2f export, or copy {listed(files)} to {engine.version}/"
        if usable:
            others = [Path(other).stem for other in usable if other != DEFAULT]
            serve = f"m2f serve --config-name {others[0]}" if DEFAULT not in usable else "m2f serve"
            why = f"with {Path(name).stem if name != DEFAULT else 'no --config-name'} Triton does not load the engine; "
            why += f"`{serve}` works"
            findings.append(warning("engine-missing", engine.version, what, why=why, fix=fix))
        else:
            why = "Triton does not load the engine, with this configuration or any other"
            findings.append(error("engine-missing", engine.version, what, why=why, fix=fix))
    present = {file for name in usable for file in _needs(engine.configs[name])} - {PLAN, ONNX}
    return findings + [found for file in sorted(present) for found in check_content(engine.version / file)]


def _configs_agree(engine: Model) -> list[Finding]:
    main = engine.config
    findings = []
    for name, config in engine.configs.items():
        if main is None or (config.input, config.output, config.max_batch_size) == (
            main.input, main.output, main.max_batch_size,
        ):  # fmt: skip
            continue
        what = f"its inputs, outputs or max_batch_size are not those of {DEFAULT}"
        why = "the ensembles fit one of them only: with the other, Triton refuses them or every request fails"
        where = engine.folder / name
        findings.append(error("engine-configs-differ", where, what, why=why, fix="make them the same in every config"))
    return findings


def _tensors(where: Path, config: Any, graph: Graph) -> list[Finding]:
    findings = []
    for kind, tensors, real in (("input", config.input, graph.inputs), ("output", config.output, graph.outputs)):
        for tensor in tensors:
            if tensor.name not in real:
                what = f"{kind} '{tensor.name}': {graph.path.name} has none of that name, but: {listed(real)}"
                why, fix = "Triton does not load the engine", f"use the names of {graph.path.name}, or export it again"
                findings.append(error("engine-tensor", where, what, why=why, fix=fix))
                continue
            value, batch = real[tensor.name], config.max_batch_size > 0
            wanted = TYPES.get(value.dtype, value.dtype)
            if dtype(tensor) != wanted:
                what = f"{kind} '{tensor.name}' is TYPE_{dtype(tensor)}, in {graph.path.name} it is {value.dtype}"
                why, fix = "Triton does not load the engine, or every request fails", f"data_type: TYPE_{wanted}"
                findings.append(error("engine-dtype", where, what, why=why, fix=fix))
            shape = value.shape[1:] if value.shape is not None and batch else value.shape
            if shape is not None and not dims_fit(tuple(tensor.dims), shape):
                free = [-1 if side is None else side for side in shape]
                what = f"{kind} '{tensor.name}' has dims {list(tensor.dims)}, in {graph.path.name} they are {free}"
                why = "Triton does not load the engine, or every request fails"
                findings.append(error("engine-dims", where, what, why=why, fix=f"dims: {free}, or -1 where it is free"))
    return findings


def _warmup(where: Path, config: Any, graph: Graph | None) -> list[Finding]:
    types = {tensor.name: dtype(tensor) for tensor in config.input}
    findings = []
    for warmup in config.model_warmup:
        for name, tensor in warmup.inputs.items():
            written = next((tuple(t.dims) for t in config.input if t.name == name), None)
            real = graph.inputs[INPUT].shape if graph is not None and name in graph.inputs and name == INPUT else None
            wanted = real[1:] if real is not None else written
            dims = tuple(tensor.dims)
            if name not in types:
                what, fix = f"warm-up '{warmup.name}' feeds '{name}'", f"the input is: {listed(types)}"
            elif dtype(tensor) != types[name]:
                what = f"warm-up '{warmup.name}' feeds {dtype(tensor)}, the input is {types[name]}"
                fix = f"data_type: TYPE_{types[name]}"
            elif wanted is not None and not dims_fit(dims, wanted):
                free = [-1 if side is None else side for side in wanted]
                what = f"warm-up '{warmup.name}' feeds dims {list(dims)}, the engine takes {free}"
                fix = f"dims: {free}"
            else:
                continue
            why = "the warm-up fails, and with it the loading of the model"
            findings.append(error("warmup", where, what, why=why, fix=fix))
    return findings
