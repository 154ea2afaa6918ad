"""A deploy config of MMDeploy: what it will do, and whether it is about the ONNX at hand."""

from __future__ import annotations

import difflib
from pathlib import Path

from m2f.contract import RAW_OUTPUTS
from m2f.limits import MAX_BATCH_SIZE
from m2f.settings import KEYS, PANOPTIC_KEYS, Settings
from m2f_export.deploy_config import DeployConfig, read_deploy_config
from m2f_export.doctor.findings import Finding, error, listed, note, warning
from m2f_export.doctor.onnx_checks import GRID_SAMPLE_OPSET, GRID_SAMPLER, HEAD_OUTPUTS, INPUT, Graph
from m2f_export.export_errors import ExportError

BACKENDS = ("tensorrt", "onnxruntime")
_POST_PROCESSING = "codebase_config.post_processing."


def check_deploy_config(path: Path) -> tuple[list[Finding], DeployConfig | None]:
    """Check a deploy config by itself.

    Returns:
        The findings, and the config; None where it cannot be read.
    """
    try:
        config = read_deploy_config(path)
    except ExportError as failure:
        what = str(failure).removeprefix(f"{path}: ")
        why = "neither m2f export nor MMDeploy can go on from it"
        return [error("deploy-config-invalid", path, what, why=why, fix="correct that key in the file")], None
    findings = [
        *_unread(path, config),
        *_masks(path, config),
        *_names(path, config),
        *_graph(path, config),
        *_sizes(path, config),
        *_backend(path, config),
    ]
    return findings, config


def compare_with_onnx(path: Path, config: DeployConfig, graph: Graph) -> list[Finding]:
    """Hold the names and sizes of a deploy config against those of the ONNX: the check the article asks for."""
    findings = []
    for kind, named, real in (
        ("input", config.input_names, tuple(graph.inputs)),
        ("output", config.output_names, tuple(graph.outputs)),
    ):
        if named and set(named) != set(real):
            what = f"{kind}_names are {listed(named)}, the {kind}s of {graph.path.name} are {listed(real)}"
            why = (
                "the file was made with another config, or its head was changed: clients will ask for the wrong tensors"
            )
            fix = f"write onnx_config.{kind}_names={list(real)!r}, or export again with this config"
            findings.append(error(f"{kind}-names-differ", path, what, why=why, fix=fix))
    for axis, asked, real_size in zip("HW", config.input_shape or (None, None), graph.input_size, strict=True):
        if asked is not None and real_size is not None and asked != real_size:
            what = f"input_shape gives {axis} = {asked}, {graph.path.name} takes {real_size}"
            why = "the ONNX was not made with this config (MMDeploy writes [width, height])"
            findings.append(error("input-shape-differs", path, what, why=why, fix="export again with this config"))
    if 0 in config.dynamic_axes.get(INPUT, {}) and graph.batch is not None:
        what = f"dynamic_axes frees the batch, {graph.path.name} has it fixed to {graph.batch}"
        why = "the ONNX was not made with this config"
        findings.append(error("batch-differs", path, what, why=why, fix="export again with this config"))
    return findings


def compare_with_settings(path: Path, config: DeployConfig, settings: Settings, where: Path) -> list[Finding]:
    """Hold `post_processing` against the thresholds that a repository serves with."""
    different = [key for key in KEYS if getattr(config.settings, key) != getattr(settings, key)]
    different = [key for key in different if getattr(config.settings, key) != getattr(Settings(), key)]
    if not different:
        return []
    pairs = listed(f"{key} {getattr(config.settings, key)} (served: {getattr(settings, key)})" for key in different)
    what = f"{path.name} asks for {pairs}"
    why = "the server answers with other thresholds than the deploy config promises"
    step = "mask2former_panoptic" if set(different) <= set(PANOPTIC_KEYS) else "mask2former_postprocess"
    fix = f"write them into the parameters of {step}/config.pbtxt, or send them with each request"
    return [warning("settings-differ", where, what, why=why, fix=fix)]


def _unread(path: Path, config: DeployConfig) -> list[Finding]:
    findings = []
    unread = [key.removeprefix(_POST_PROCESSING) for key in config.ignored if key.startswith(_POST_PROCESSING)]
    for key in unread:
        close = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.8)
        what = f"post_processing.{key} means nothing for Mask2Former" + (f": did you mean {close[0]}?" if close else "")
        fix = f"write {close[0]} instead" if close else f"remove it; keys that act here: {listed(KEYS)}"
        why = "MMDeploy does not read it for Mask2Former, and nor does m2f"
        findings.append(warning("key-not-read", path, what, why=why, fix=fix))
    others = [key for key in config.ignored if not key.startswith(_POST_PROCESSING)]
    if others:
        what, why = f"not read: {listed(others)}", "m2f export decides these by itself"
        findings.append(note("key-not-read", path, what, why=why, fix="nothing to do"))
    changed = {key: getattr(config.settings, key) for key in KEYS}
    set_keys = [f"{key}={value}" for key, value in changed.items() if value != getattr(Settings(), key)]
    if not set_keys:
        return findings
    what = f"MMDeploy ignores post_processing for Mask2Former; m2f serves it: {listed(set_keys)}"
    why = "open-mmlab/mmdeploy#2775: its engine gives raw cls_logits and mask_logits whatever these keys say"
    fix = "m2f export --deploy-config writes them into mask2former_postprocess, where they act"
    return [*findings, note("mmdeploy-ignores", path, what, why=why, fix=fix)]


def _masks(path: Path, config: DeployConfig) -> list[Finding]:
    if config.settings.export_postprocess_mask:
        return []
    what = "export_postprocess_mask is false"
    why = "MMDeploy's own base config says so, and MMDeploy ignores it; m2f does as it says: no `rle`, no `masks`"
    fix = "post_processing.export_postprocess_mask = true, where masks are wanted"
    return [warning("masks-off", path, what, why=why, fix=fix)]


def _names(path: Path, config: DeployConfig) -> list[Finding]:
    findings = []
    if config.input_names and config.input_names != (INPUT,):
        what = f"input_names are {listed(config.input_names)}; the engine's input is '{INPUT}'"
        why = "Triton maps tensors by name, so the ensemble cannot feed the engine"
        findings.append(error("input-names", path, what, why=why, fix="onnx_config.input_names = ['input']"))
    names, fix = config.output_names, f"onnx_config.output_names = {list(RAW_OUTPUTS)!r}"
    if not names or names == RAW_OUTPUTS or set(HEAD_OUTPUTS) <= set(names):
        return findings
    if set(names) == set(RAW_OUTPUTS):
        what, code = f"output_names stand in the order {listed(names)}", "output-order"
        why = "MMDeploy gives the names to the outputs in their order, classes first: each would carry the other's name"
    else:
        what, code = f"output_names are {listed(names)}; Mask2Former's are {listed(RAW_OUTPUTS)}", "output-names"
        why = "MMDeploy's Mask2Former has these two outputs whatever they are called, and Triton maps tensors by name"
    return [*findings, error(code, path, what, why=why, fix=fix)]


def _graph(path: Path, config: DeployConfig) -> list[Finding]:
    if config.opset is None or config.opset >= GRID_SAMPLE_OPSET:
        return []
    what = f"opset_version is {config.opset}"
    why = (
        f"GridSample is standard from opset {GRID_SAMPLE_OPSET} on; MMDeploy writes {GRID_SAMPLER} in its place, "
        "which needs its plugin library in the server"
    )
    fix = "m2f export writes opset 17 whatever stands here; for other exporters: onnx_config.opset_version = 17"
    return [warning("opset-too-old", path, what, why=why, fix=fix)]


def _sizes(path: Path, config: DeployConfig) -> list[Finding]:
    findings = []
    free = config.dynamic_axes.get(INPUT, {})
    if config.input_shape is None and not {2, 3} & free.keys():
        what = "neither input_shape nor a dynamic height and width is given"
        why = "MMDeploy then keeps the size of the image it traces with; m2f export leaves height and width free"
        fix = "onnx_config.input_shape = [width, height], such as [1344, 800], or dynamic_axes 2 and 3 of 'input'"
        findings.append(warning("input-shape-missing", path, what, why=why, fix=fix))
    if config.input_shape is not None and any(side % 32 for side in config.input_shape):
        height, width = config.input_shape
        what = f"input_shape is {width} x {height} (width x height), not multiples of 32"
        why = "the backbone halves it five times: mask cells and pixels no longer lie on one grid"
        findings.append(warning("input-size", path, what, why=why, fix="round both up to a multiple of 32"))
    if 0 not in free:
        what = "dynamic_axes does not free the batch (axis 0 of 'input')"
        why = "a graph that MMDeploy makes of it is served one image after the other; m2f export frees the batch"
        fix = "dynamic_axes = {'input': {0: 'batch'}, 'cls_logits': {0: 'batch'}, 'mask_logits': {0: 'batch'}}"
        findings.append(warning("batch-fixed", path, what, why=why, fix=fix))
    return findings


def _backend(path: Path, config: DeployConfig) -> list[Finding]:
    findings = []
    if config.backend is not None and config.backend not in BACKENDS:
        what = f"backend_config.type is {config.backend}"
        why = "the repository serves Mask2Former with TensorRT or ONNX Runtime"
        findings.append(warning("backend", path, what, why=why, fix=f"one of: {listed(BACKENDS)}"))
    if config.backend != "tensorrt" or INPUT not in config.shapes:
        return findings
    shapes = config.shapes[INPUT]
    if shapes.maximum[0] < MAX_BATCH_SIZE:
        what = f"max_shape {list(shapes.maximum)} allows a batch of {shapes.maximum[0]}"
        why = f"the configurations say max_batch_size: {MAX_BATCH_SIZE}, and TensorRT refuses more than its profile"
        fix = f"max_shape = {[MAX_BATCH_SIZE, *shapes.maximum[1:]]}, or max_batch_size: {shapes.maximum[0]}"
        findings.append(warning("profile-batch", path, what, why=why, fix=fix))
    sides = (shapes.minimum[2:], shapes.maximum[2:])
    if config.input_shape is not None and not all(
        low <= side <= high for low, side, high in zip(sides[0], config.input_shape, sides[1], strict=True)
    ):
        what = f"input_shape (h, w) {config.input_shape} lies outside the profile {sides[0]} to {sides[1]}"
        why = "the engine would refuse its own input; input_shape is [width, height], the profile [N, C, H, W]"
        fix = "write input_shape as [width, height], or mend min_shape and max_shape"
        findings.append(error("profile-differs", path, what, why=why, fix=fix))
    return findings
