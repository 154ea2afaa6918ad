"""A whole repository: files that are missing, parameters that are refused, steps that do not fit the engine."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from m2f.errors import InputError
from m2f.model_facts import ModelFacts
from m2f.parameters import whole_number
from m2f.preprocess import Preprocessing
from m2f.settings import KEYS, PANOPTIC_KEYS, Settings
from m2f_export.deploy_config import DeployConfig
from m2f_export.doctor.deploy_checks import compare_with_onnx, compare_with_settings
from m2f_export.doctor.engine_checks import ONNX, check_engine
from m2f_export.doctor.ensemble_checks import check_ensembles, is_ensemble
from m2f_export.doctor.findings import Finding, check_content, error, listed, warning
from m2f_export.doctor.model_configs import DEFAULT, Model, read_repository
from m2f_export.doctor.onnx_checks import Graph, check_onnx
from m2f_export.doctor.server_version import check_server

PREPROCESS, POSTPROCESS = "mask2former_preprocess", "mask2former_postprocess"
PANOPTIC, SEMANTIC = "mask2former_panoptic", "mask2former_semantic"
MAX_INPUT_SIDE = 8192  # larger inputs are taken for a slip of the pen, and not tried
_LIMITS = ("max_pixels", "max_output_bytes")
# The parameters that each step reads.
_KEYS = {
    POSTPROCESS: (
        *(key for key in KEYS if key not in PANOPTIC_KEYS),
        "class_names",
        "thing_classes",
        "mask_stride",
        "threads",
        "max_pixels",
        "max_instances",
    ),
    PANOPTIC: (*PANOPTIC_KEYS, "background_label_id", "class_names", "thing_classes", "mask_stride", *_LIMITS),
    SEMANTIC: ("background_label_id", "mask_stride", *_LIMITS),
}


def check_repository(
    folder: Path,
    *,
    tensorrt_version: str | None = None,
    server_version: str | None = None,
    deploy: tuple[Path, DeployConfig] | None = None,
) -> list[Finding]:
    """Check a model repository.

    Args:
        folder: the repository.
        tensorrt_version: of the server, for the plan.
        server_version: of Triton or its container; None: of the one found here.
        deploy: a deploy config, and where it was read from, to hold against the ONNX and the thresholds.
    """
    findings, models = read_repository(folder)
    findings += check_server(server_version) if models else []
    for model in models.values():
        findings += [*_files(model), *_response_cache(model), *_queue(model)]
    findings += check_ensembles(models)
    preprocessing, found = _preprocessing(models.get(PREPROCESS))
    findings += found
    settings, found = _postprocessing(models)
    findings += found
    for engine in (model for model in models.values() if model.is_engine):
        found, graph = _onnx(engine)
        findings += found + check_engine(engine, graph, tensorrt_version=tensorrt_version)
        if graph is not None:
            findings += _fit(models, graph, preprocessing)
            findings += compare_with_onnx(*deploy, graph) if deploy is not None else []
    if deploy is not None and settings is not None and POSTPROCESS in models:
        findings += compare_with_settings(*deploy, settings, models[POSTPROCESS].folder / DEFAULT)
    return findings


def _onnx(engine: Model) -> tuple[list[Finding], Graph | None]:
    path = engine.version / ONNX if engine.version is not None else None
    if path is None or not path.is_file():
        return [], None
    findings, graph = check_onnx(path)
    return _as_served(findings, engine), graph


def _files(model: Model) -> list[Finding]:
    """Check what every model needs; the engine's own files are its own matter."""
    if model.version is None:
        what, why = f"{model.name} has no version folder (1/)", "Triton finds no version to load"
        fix = f"mkdir {model.folder / '1'} (git keeps no empty folder: put a .gitkeep into it)"
        return [error("version-missing", model.folder, what, why=why, fix=fix)]
    if model.is_engine or model.config is None or is_ensemble(model.config):
        return []
    file = model.version / (model.config.default_model_filename or "model.py")
    if model.config.backend == "python" and not file.is_file():
        what, why = f"{file.name} is missing", "Triton does not load the model, nor an ensemble that uses it"
        return [error("model-file-missing", file, what, why=why, fix="copy it from the shipped model_repository")]
    return check_content(file) if file.is_file() else []


def _response_cache(model: Model) -> list[Finding]:
    findings = []
    for name, config in model.configs.items():
        if config.response_cache.enable:
            what = "the response cache is on"
            why = "its key leaves out parameters and requested outputs: it answers with what another request asked for"
            findings.append(error("response-cache", model.folder / name, what, why=why, fix="remove response_cache"))
    return findings


def _queue(model: Model) -> list[Finding]:
    """Check for a policy that costs more than it gives: docs/limits.md, "Queues and time"."""
    what = f"{model.name} has a queue that refuses"
    why = "Triton loses wake-ups of such a queue: requests wait in it for the next one, or half a second"
    fix = f"remove default_queue_policy: {PREPROCESS} refuses for all"
    if model.name == PREPROCESS:
        what, fix = f"{what}, and one instance", "count: 2 in instance_group: each wakes the queue for the other"
    findings = []
    for name, config in model.configs.items():
        policy = config.dynamic_batching.default_queue_policy
        refuses = policy.max_queue_size or policy.default_timeout_microseconds or policy.allow_timeout_override
        two = model.name == PREPROCESS and sum(group.count for group in config.instance_group) > 1
        if refuses and not two:
            findings.append(warning("queue-policy", model.folder / name, what, why=why, fix=fix))
    return findings


def _preprocessing(model: Model | None) -> tuple[Preprocessing | None, list[Finding]]:
    """Read the preprocessing's parameters, and try them on a small picture."""
    if model is None or model.config is None:
        return None, []
    where, why = model.folder / DEFAULT, "the model refuses to start, or every request fails"
    try:
        preprocessing = Preprocessing.from_repository(model.parameters())
        sides = (*preprocessing.target_size(6, 8), *(preprocessing.input_size or ()), preprocessing.pad_divisor)
        if max(sides) > MAX_INPUT_SIDE:
            raise InputError(f"an image becomes {max(sides)} pixels long; at most {MAX_INPUT_SIDE} are sensible")
        batch, *_ = preprocessing([cv2.imencode(".png", np.zeros((6, 8, 3), np.uint8))[1].tobytes()])
        if not np.isfinite(batch).all():
            raise InputError("parameter 'std' must not be 0: the input becomes infinite")
    except InputError as failure:
        return None, [error("parameter-invalid", where, str(failure), why=why, fix="correct it in `parameters`")]
    except Exception as failure:  # values that parse and have the wrong shape fail wherever they are used first
        what = f"the parameters do not work on an image of 8 x 6: {type(failure).__name__}: {failure}"
        fix = "sizes are [height, width], colours [r, g, b]; m2f.preprocess.Preprocessing says what each key is"
        return None, [error("parameter-invalid", where, what, why=why, fix=fix)]
    return preprocessing, []


def _postprocessing(models: dict[str, Model]) -> tuple[Settings | None, list[Finding]]:
    """Read the parameters of the steps after the engine; return what they are all together."""
    steps = [models[name] for name in _KEYS if name in models and models[name].config is not None]
    findings = [finding for step in steps for finding in _step(step)] + _disagreements(steps)
    together = {key: text for step in reversed(steps) for key, text in step.parameters().items()}
    try:
        return Settings.from_repository(together) if steps else None, findings
    except InputError:
        return None, findings  # said already


def _disagreements(steps: list[Model]) -> list[Finding]:
    findings = []
    for key in ("background_label_id", "class_names", "thing_classes", "mask_stride"):
        stated = {step.name: step.parameters()[key] for step in steps if key in step.parameters()}
        if len(set(stated.values())) > 1:
            what = f"{key} is not the same in {listed(stated)}"
            why = "the outputs of one request do not fit together"
            fix = "write the same value into each"
            findings.append(error("steps-differ", steps[0].folder.parent, what, why=why, fix=fix))
    return findings


def _step(model: Model) -> list[Finding]:
    where, why = model.folder / DEFAULT, "the model refuses to start, or every request fails"
    parameters, findings = model.parameters(), []
    try:
        Settings.from_repository(parameters)
        ModelFacts.from_repository(parameters)
        whole_number(parameters, "threads", 1)
    except InputError as failure:
        findings.append(error("parameter-invalid", where, str(failure), why=why, fix="correct it in `parameters`"))
    for key in parameters:
        if key not in _KEYS[model.name] and not key.isupper():  # Triton's own are in capitals
            what, reason = f"parameter '{key}' is read by nothing", "a slip of the pen leaves the default in force"
            fix = f"keys: {listed(_KEYS[model.name])}"
            findings.append(warning("parameter-unknown", where, what, why=reason, fix=fix))
    names = class_names(model) or []
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        what, reason = f"class_names has twice: {listed(twice)}", "`classes` by name means the first of them only"
        findings.append(warning("class-names-twice", where, what, why=reason, fix="give every class its own name"))
    return findings


def class_names(model: Model) -> list[str] | None:
    """Return the class names of a step, or None where they cannot be read."""
    try:
        names = json.loads(model.parameters().get("class_names", "[]"))
    except json.JSONDecodeError:
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def mask_stride(model: Model) -> int | None:
    """Return the mask stride of a step, or None where it cannot be read."""
    try:
        return whole_number(model.parameters(), "mask_stride", 4)
    except InputError:
        return None  # said already


def _background_label_id(model: Model) -> int | None:
    try:
        return Settings.from_repository(model.parameters()).background_label_id
    except InputError:
        return None  # said already


def _fit(models: dict[str, Model], graph: Graph, preprocessing: Preprocessing | None) -> list[Finding]:
    findings = []
    if preprocessing is not None:
        findings += _preprocessing_fits(models[PREPROCESS].folder / DEFAULT, preprocessing, graph)
    post = models.get(POSTPROCESS)
    if post is not None and post.config is not None:
        findings += _postprocessing_fits(post, graph)
    return findings


def _preprocessing_fits(where: Path, preprocessing: Preprocessing, graph: Graph) -> list[Finding]:
    findings = []
    layout = {"UINT8": "uint8_hwc", "FLOAT": "float32_chw"}.get(graph.inputs["input"].dtype if graph.inputs else "")
    if layout is not None and preprocessing.layout != layout:
        what = f"layout is {preprocessing.layout}, {graph.path.name} takes {layout}"
        why = "the engine refuses every input"
        fix = f'parameters {{ key: "layout" value {{ string_value: "{layout}" }} }}, and the same type in every config'
        findings.append(error("layout", where, what, why=why, fix=fix))
    size = graph.input_size
    if None not in size and preprocessing.input_size != size:
        given = preprocessing.input_size or f"the next multiple of {preprocessing.pad_divisor}"
        what = f"input_size is {given}, {graph.path.name} takes {size} (height, width)"
        why = "the engine refuses every input of another size"
        fix = f'parameters {{ key: "input_size" value {{ string_value: "{list(size)}" }} }}'
        findings.append(error("input-size", where, what, why=why, fix=fix))
    return findings


def _postprocessing_fits(model: Model, graph: Graph) -> list[Finding]:
    findings = []
    where = model.folder / DEFAULT
    logits, names = graph.output_shape("cls_logits"), class_names(model)
    classes = logits[2] - 1 if logits is not None and len(logits) == 3 and logits[2] is not None else None
    if names and classes is not None and len(names) != classes:
        column = "first" if _background_label_id(model) == 0 else "last"
        what = f"class_names has {len(names)} names, cls_logits {classes + 1} columns: {classes} classes and no-object"
        why = f"labels get the wrong name, or none (no-object is the {column} column and has no name)"
        fix = "write the names of the training data, in the order of the labels, without no-object"
        findings.append(error("class-names", where, what, why=why, fix=fix))
    masks, stride = graph.output_shape("mask_logits"), mask_stride(model)
    size = graph.trial.size if graph.trial is not None else graph.input_size
    if stride is None or masks is None or len(masks) != 4:
        return findings
    for side, cells in zip(size, masks[2:], strict=True):
        if side is not None and cells is not None and side != cells * stride:
            what = f"mask_stride is {stride}, but {side} pixels of input become {cells} mask cells"
            why = "masks are placed at the wrong scale, or every request fails"
            fix = f'parameters {{ key: "mask_stride" value {{ string_value: "{max(1, round(side / cells))}" }} }}'
            findings.append(error("mask-stride", where, what, why=why, fix=fix))
            break
    return findings


def _as_served(found: list[Finding], engine: Model) -> list[Finding]:
    """Judge the ONNX's findings by the configuration: a fixed batch is an error where Triton batches."""
    batched = any(config.max_batch_size > 0 for config in engine.configs.values())
    return [
        error("batch-fixed", f.where, f.what, why=f.why, fix=f"{f.fix}, or max_batch_size: 0")
        if f.code == "batch-fixed" and batched
        else f
        for f in found
    ]
