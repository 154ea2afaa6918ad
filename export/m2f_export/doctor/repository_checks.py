"""A whole repository: missing files, refused parameters, steps that do not fit the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from m2f.errors import InputError
from m2f.model_facts import NO_FACTS, ModelFacts
from m2f.parameters import whole_number
from m2f.preprocess import Preprocessing
from m2f.settings import INSTANCE_KEYS, PANOPTIC_KEYS, SEMANTIC_KEYS, Settings
from m2f_export.deploy_config import DeployConfig
from m2f_export.doctor import catalogue
from m2f_export.doctor.deploy_checks import compare_with_onnx, compare_with_settings
from m2f_export.doctor.engine_checks import ONNX, check_engine
from m2f_export.doctor.ensemble_checks import check_ensembles, is_ensemble
from m2f_export.doctor.exports import Export, read_exports
from m2f_export.doctor.file_checks import check_content
from m2f_export.doctor.findings import Finding, listed
from m2f_export.doctor.model_configs import DEFAULT, Model, read_repository
from m2f_export.doctor.onnx_checks import Graph, check_onnx
from m2f_export.doctor.server_version import check_server
from m2f_export.export_errors import ExportError
from m2f_export.onnx_files import MAX_INPUT_SIDE
from m2f_export.repository_place import REPORT

_FACTS, _LIMITS = tuple(ModelFacts.__dataclass_fields__), ("max_pixels", "max_output_bytes")
# The parameters that each step reads, by what it does
_KEYS = {
    "postprocess": (*INSTANCE_KEYS, *_FACTS, "threads", "max_pixels", "max_instances"),
    "panoptic": (*PANOPTIC_KEYS, "background_label_id", *_FACTS, *_LIMITS),
    "semantic": (*SEMANTIC_KEYS, "background_label_id", "mask_stride", *_LIMITS),
}


def check_repository(
    folder: Path,
    *,
    model: str | None = None,
    tensorrt_version: str | None = None,
    server_version: str | None = None,
    deploy: tuple[Path, DeployConfig] | None = None,
) -> list[Finding]:
    """Check a model repository: each export by itself, and what keeps a server from starting.

    Args:
        folder: the repository.
        model: ensemble of the only export to check; None: every export.
        tensorrt_version: the server's TensorRT, to compare with the plan's.
        server_version: Triton's version or its container's; None: of the server found here.
        deploy: a deploy config and its path, to compare with the ONNX and the thresholds.

    Raises:
        ExportError: no export has that ensemble, or it is not clear which export the deploy config is of.
    """
    findings, models = read_repository(folder)
    findings += check_server(server_version) if models else []
    findings += [catalogue.OLD_LAYOUT(folder, folder=folder)] if (folder / REPORT).is_file() else []
    exports = read_exports(models)
    if model is not None:
        exports = _only(folder, model, exports)
        models = {name: found for export in exports for name, found in export.models.items()}
    thresholds = [export for export in exports if export.readers]
    if deploy is not None and len(thresholds) > 1:
        names = listed(export.names[0] for export in thresholds)
        raise ExportError(f"{folder} has several exports: {names}; --model says which one the deploy config is of")
    findings += [finding for found in models.values() for finding in _files(found, exports)]
    for export in exports:
        findings += _export(export, tensorrt_version=tensorrt_version, deploy=deploy)
    return list(dict.fromkeys(findings))  # exports may share a step


def _only(folder: Path, model: str, exports: list[Export]) -> list[Export]:
    if chosen := [export for export in exports if model in export.names]:
        return chosen
    names = listed(sorted(name for export in exports for name in export.names))
    raise ExportError(f"{folder} has no export named {model}; there are: {names or 'none'}")


def _export(
    export: Export, *, tensorrt_version: str | None, deploy: tuple[Path, DeployConfig] | None
) -> Iterator[Finding]:
    for model in export.models.values():
        yield from (*_response_cache(model), *_queue(model, first=model is export.preprocess))
    yield from check_ensembles(export.models)
    preprocessing, found = _preprocessing(export.preprocess)
    yield from found
    readers = {role: model for role, model in export.readers.items() if model.config is not None}
    for role, model in readers.items():
        yield from _step(model, keys=_KEYS[role])
    yield from _disagreements(list(readers.values()))
    if export.engine is not None:
        found, graph = _onnx(export.engine)
        yield from (*found, *check_engine(export.engine, graph, tensorrt_version=tensorrt_version))
        if graph is not None:
            yield from _fit(export, graph, preprocessing)
            yield from compare_with_onnx(*deploy, graph) if deploy is not None else ()
    settings = _served_settings(list(readers.values()))
    if deploy is not None and settings is not None and "postprocess" in readers:
        yield from compare_with_settings(*deploy, settings, readers["postprocess"].folder / DEFAULT)


def _onnx(engine: Model) -> tuple[list[Finding], Graph | None]:
    """Check the engine's ONNX; a fixed batch is an error where Triton batches."""
    path = engine.version / ONNX if engine.version is not None else None
    if path is None or not path.is_file():
        return [], None
    findings, graph = check_onnx(path)
    if graph is not None and any(config.max_batch_size > 0 for config in engine.configs.values()):
        fixed = catalogue.SERVED_BATCH_FIXED
        findings = [fixed(path, batch=graph.batch) if f.code == fixed.code else f for f in findings]
    return findings, graph


def _files(model: Model, exports: list[Export]) -> Iterator[Finding]:
    """Check the files that every model needs; the engine's own files have their own checks."""
    is_engine = any(model is export.engine for export in exports)
    is_step = any(model.name in export.models for export in exports)
    if not (model.folder / DEFAULT).exists() and (is_step or not _describes_itself(model)):
        yield catalogue.CONFIG_MISSING(model.folder, name=model.name)
    if model.version is None:
        yield catalogue.VERSION_MISSING(model.folder, name=model.name, folder=model.folder / "1")
        return
    if is_engine or model.config is None or is_ensemble(model.config):
        return
    file = model.version / (model.config.default_model_filename or "model.py")
    if file.is_file():
        yield from check_content(file)
    elif model.config.backend == "python":
        yield catalogue.MODEL_FILE_MISSING(file, name=file.name)


def _describes_itself(model: Model) -> bool:
    """Return whether Triton may read the tensors of a model from its file, as it does from an ONNX."""
    return model.version is not None and any(not path.name.startswith(".") for path in model.version.iterdir())


def _response_cache(model: Model) -> Iterator[Finding]:
    for name, config in model.configs.items():
        if config.response_cache.enable:
            yield catalogue.RESPONSE_CACHE(model.folder / name)


def _queue(model: Model, *, first: bool) -> Iterator[Finding]:
    """Check for a queue policy that costs more than it gives: docs/limits.md, "Queues and time"."""
    for name, config in model.configs.items():
        policy = config.dynamic_batching.default_queue_policy
        refuses = policy.max_queue_size or policy.default_timeout_microseconds or policy.allow_timeout_override
        if refuses and not (first and sum(group.count for group in config.instance_group) > 1):
            entry = catalogue.QUEUE_OF_ONE if first else catalogue.QUEUE_POLICY
            yield entry(model.folder / name, name=model.name)


def _preprocessing(model: Model | None) -> tuple[Preprocessing | None, list[Finding]]:
    """Read the preprocessing's parameters, and try them on a small picture."""
    if model is None or model.config is None:
        return None, []
    where = model.folder / DEFAULT
    try:
        preprocessing = Preprocessing.from_repository(model.parameters())
        sides = (*preprocessing.target_size(6, 8), *(preprocessing.input_size or ()), preprocessing.pad_divisor)
        if max(sides) > MAX_INPUT_SIDE:
            raise InputError(f"an image becomes {max(sides)} pixels long; at most {MAX_INPUT_SIDE} are sensible")
        batch, *_ = preprocessing([cv2.imencode(".png", np.zeros((6, 8, 3), np.uint8))[1].tobytes()])
        if not np.isfinite(batch).all():
            raise InputError("parameter 'std' must not be 0: the input becomes infinite")
    except InputError as failure:
        return None, [catalogue.PARAMETER_INVALID(where, reason=failure)]
    except Exception as failure:  # values that parse but have the wrong shape fail wherever they are used first
        return None, [catalogue.PREPROCESSING_FAILS(where, reason=f"{type(failure).__name__}: {failure}")]
    return preprocessing, []


def _served_settings(steps: list[Model]) -> Settings | None:
    """Return the settings of all steps together; None without steps, or if a setting cannot be read."""
    together = {key: text for step in reversed(steps) for key, text in step.parameters().items()}
    try:
        return Settings.from_repository(together) if steps else None
    except InputError:
        return None  # reported by _step


def _disagreements(steps: list[Model]) -> Iterator[Finding]:
    for key in ("background_label_id", "class_names", "thing_classes", "mask_stride"):
        stated = {step.name: step.parameters()[key] for step in steps if key in step.parameters()}
        if len(set(stated.values())) > 1:
            yield catalogue.STEPS_DIFFER(steps[0].folder.parent, key=key, stated=listed(stated))


def _step(model: Model, *, keys: tuple[str, ...]) -> Iterator[Finding]:
    where, parameters = model.folder / DEFAULT, model.parameters()
    facts = NO_FACTS
    try:
        facts = ModelFacts.from_repository(parameters)
        Settings.from_repository(parameters)
        whole_number(parameters, "threads", 1)
    except InputError as failure:
        yield catalogue.PARAMETER_INVALID(where, reason=failure)
    for key in parameters:
        if key not in keys and not key.isupper():  # Triton's own are in capitals
            yield catalogue.PARAMETER_UNKNOWN(where, key=key, keys=listed(keys))
    names = facts.class_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield catalogue.CLASS_NAMES_TWICE(where, names=listed(twice))


def _fit(export: Export, graph: Graph, preprocessing: Preprocessing | None) -> Iterator[Finding]:
    """Compare the steps around the engine with its graph."""
    if export.preprocess is not None and preprocessing is not None:
        yield from _preprocessing_fits(export.preprocess.folder / DEFAULT, preprocessing, graph)
    post = export.readers.get("postprocess")
    if post is None or post.config is None:
        return
    where, parameters = post.folder / DEFAULT, post.parameters()
    try:
        facts, settings = ModelFacts.from_repository(parameters), Settings.from_repository(parameters)
    except InputError:
        return  # reported by _step
    yield from _class_names_fit(where, facts, graph, column="first" if settings.background_label_id == 0 else "last")
    yield from _named_classes_exist(where, facts, settings, graph)
    yield from _mask_stride_fits(where, facts, graph)


def _preprocessing_fits(where: Path, preprocessing: Preprocessing, graph: Graph) -> Iterator[Finding]:
    model, size = graph.path.name, graph.input_size
    layout = {"UINT8": "uint8_hwc", "FLOAT": "float32_chw"}.get(graph.inputs["input"].dtype if graph.inputs else "")
    if layout is not None and preprocessing.layout != layout:
        yield catalogue.LAYOUT(where, stated=preprocessing.layout, model=model, layout=layout)
    if None not in size and preprocessing.input_size != size:
        stated = preprocessing.input_size or f"the next multiple of {preprocessing.pad_divisor}"
        yield catalogue.INPUT_SIZE(where, stated=stated, model=model, size=size, size_list=list(size))


def _columns(graph: Graph) -> int | None:
    """Return the number of class columns of the logits, no-object included; None if it is not known."""
    logits = graph.output_shape("cls_logits")
    return logits[2] if logits is not None and len(logits) == 3 else None


def _named_classes_exist(where: Path, facts: ModelFacts, settings: Settings, graph: Graph) -> Iterator[Finding]:
    columns = _columns(graph)
    if columns is None or columns < 2:
        return
    for resolve in (settings.class_indices, settings.thresholds):
        try:
            resolve(facts.class_names, columns - 1)
        except InputError as failure:
            yield catalogue.PARAMETER_INVALID(where, reason=failure)


def _class_names_fit(where: Path, facts: ModelFacts, graph: Graph, *, column: str) -> Iterator[Finding]:
    columns, names = _columns(graph), len(facts.class_names)
    if names and columns is not None and names != columns - 1:
        yield catalogue.CLASS_NAMES(where, names=names, columns=columns, classes=columns - 1, column=column)


def _mask_stride_fits(where: Path, facts: ModelFacts, graph: Graph) -> Iterator[Finding]:
    masks, stride = graph.output_shape("mask_logits"), facts.mask_stride
    size = graph.trial.size if graph.trial is not None else graph.input_size
    if masks is None or len(masks) != 4:
        return
    for side, cells in zip(size, masks[2:], strict=True):
        if side is not None and cells is not None and side != cells * stride:
            wanted = max(1, round(side / cells))
            yield catalogue.MASK_STRIDE(where, stride=stride, side=side, cells=cells, wanted=wanted)
            return
