"""The engine of a repository: its files for each configuration, and the configurations against the ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2f_export.doctor import catalogue
from m2f_export.doctor.file_checks import check_content
from m2f_export.doctor.findings import Finding, listed
from m2f_export.doctor.model_configs import DEFAULT, Model, dims_fit, dtype
from m2f_export.doctor.onnx_checks import Graph
from m2f_export.doctor.plan_checks import check_plan
from m2f_export.onnx_files import INPUT

# Triton's names of the types, by ONNX's
TYPES = {"UINT8": "UINT8", "FLOAT": "FP32", "FLOAT16": "FP16", "INT32": "INT32", "INT64": "INT64", "DOUBLE": "FP64"}
PLAN, ONNX = "model.plan", "model.onnx"


def check_engine(engine: Model, graph: Graph | None, *, tensorrt_version: str | None) -> Iterator[Finding]:
    """Check the engine's files, and its configurations against each other and against the ONNX."""
    if engine.version is not None:
        yield from _files(engine, engine.version)
        plan = engine.version / PLAN
        if plan.is_file():
            yield from check_plan(plan, tensorrt_version=tensorrt_version)
    yield from _configs_agree(engine)
    for name, config in engine.configs.items():
        where = engine.folder / name
        yield from _warmup(where, config, graph)
        if graph is not None:
            yield from _tensors(where, config, graph)


def _needs(config: Any) -> tuple[str, ...]:
    """Return the files that a configuration of the engine loads."""
    if "tensorrt_plan" in (config.platform, config.backend) or config.backend == "tensorrt":
        return (config.default_model_filename or PLAN,)
    if config.platform == "onnxruntime_onnx" or config.backend == "onnxruntime":
        return (config.default_model_filename or ONNX,)
    return (config.default_model_filename or "model.py", ONNX)


def _files(engine: Model, folder: Path) -> Iterator[Finding]:
    missing = {
        name: [file for file in _needs(config) if not (folder / file).is_file()]
        for name, config in engine.configs.items()
    }
    usable = [name for name, files in missing.items() if not files]
    serve = "m2f serve"
    if usable and DEFAULT not in usable:
        serve += f" --config-name {Path(usable[0]).stem}"
    for name, files in missing.items():
        if files:
            never = catalogue.PLAN_MISSING if PLAN in files else catalogue.ENGINE_MISSING
            here = catalogue.PLAN_MISSING_HERE if PLAN in files else catalogue.ENGINE_MISSING_HERE
            option = "--config-name tensorrt" if name == DEFAULT else Path(name).stem
            yield (here if usable else never)(
                folder, files=listed(files), config=name, folder=folder, option=option, serve=serve
            )
    present = {file for name in usable for file in _needs(engine.configs[name])} - {PLAN, ONNX}
    for file in sorted(present):
        yield from check_content(folder / file)


def _configs_agree(engine: Model) -> Iterator[Finding]:
    def stated(config: Any) -> tuple[Any, ...]:
        return config.input, config.output, config.max_batch_size

    for name, config in engine.configs.items():
        if engine.config is not None and stated(config) != stated(engine.config):
            yield catalogue.ENGINE_CONFIGS_DIFFER(engine.folder / name)


def _tensors(where: Path, config: Any, graph: Graph) -> Iterator[Finding]:
    model = graph.path.name
    for kind, tensors, real in (("input", config.input, graph.inputs), ("output", config.output, graph.outputs)):
        for tensor in tensors:
            this = {"kind": kind, "name": tensor.name, "model": model}
            if tensor.name not in real:
                yield catalogue.ENGINE_TENSOR(where, **this, real=listed(real))
                continue
            value = real[tensor.name]
            wanted = TYPES.get(value.dtype, value.dtype)
            if dtype(tensor) != wanted:
                yield catalogue.ENGINE_DTYPE(where, **this, stated=dtype(tensor), real=value.dtype, wanted=wanted)
            shape = value.shape[1:] if value.shape is not None and config.max_batch_size > 0 else value.shape
            if shape is not None and not dims_fit(tuple(tensor.dims), shape):
                yield catalogue.ENGINE_DIMS(where, **this, stated=list(tensor.dims), real=_dims(shape))


def _warmup(where: Path, config: Any, graph: Graph | None) -> Iterator[Finding]:
    stated = {tensor.name: tensor for tensor in config.input}
    for warmup in config.model_warmup:
        for name, tensor in warmup.inputs.items():
            if name not in stated:
                yield catalogue.WARMUP_NAME(where, warmup=warmup.name, name=name, inputs=listed(stated))
                continue
            kind, wanted = dtype(stated[name]), tuple(stated[name].dims)
            shape = graph.inputs[name].shape if graph is not None and name == INPUT and name in graph.inputs else None
            wanted = wanted if shape is None else shape[1:]
            if dtype(tensor) != kind:
                yield catalogue.WARMUP_DTYPE(where, warmup=warmup.name, stated=dtype(tensor), wanted=kind)
            elif not dims_fit(tuple(tensor.dims), wanted):
                dims = list(tensor.dims)
                yield catalogue.WARMUP_DIMS(where, warmup=warmup.name, stated=dims, wanted=_dims(wanted))


def _dims(shape: tuple[int | None, ...]) -> list[int]:
    """Return a shape as a configuration writes it: -1 for free axes."""
    return [-1 if side is None else side for side in shape]
