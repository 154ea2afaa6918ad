"""A deploy config of MMDeploy: what the config will do, and whether it belongs to the ONNX at hand."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from m2f.contract import RAW_OUTPUTS
from m2f.limits import MAX_BATCH_SIZE
from m2f.settings import KEYS, PANOPTIC_KEYS, Settings
from m2f_export.deploy_config import DeployConfig, read_deploy_config
from m2f_export.doctor import catalogue
from m2f_export.doctor.findings import Finding, listed
from m2f_export.doctor.onnx_checks import GRID_SAMPLE_OPSET, HEAD_OUTPUTS, Graph
from m2f_export.export_errors import ExportError
from m2f_export.onnx_files import INPUT

BACKENDS = ("tensorrt", "onnxruntime")
_POST_PROCESSING = "codebase_config.post_processing."


def check_deploy_config(path: Path) -> tuple[list[Finding], DeployConfig | None]:
    """Check a deploy config by itself.

    Returns:
        The findings, and the config; None where the file cannot be read.
    """
    try:
        config = read_deploy_config(path)
    except ExportError as failure:
        return [catalogue.DEPLOY_CONFIG_INVALID(path, reason=str(failure).removeprefix(f"{path}: "))], None
    checks = (_unread, _names, _graph, _backend)
    return [finding for check in checks for finding in check(path, config)], config


def compare_with_onnx(path: Path, config: DeployConfig, graph: Graph) -> Iterator[Finding]:
    """Compare the names and sizes of a deploy config with those of the ONNX."""
    model = graph.path.name
    for entry, kind, named, real in (
        (catalogue.INPUT_NAMES_DIFFER, "input", config.input_names, list(graph.inputs)),
        (catalogue.OUTPUT_NAMES_DIFFER, "output", config.output_names, list(graph.outputs)),
    ):
        if named and set(named) != set(real):
            yield entry(path, kind=kind, named=listed(named), model=model, real=listed(real), real_list=real)
    for axis, asked, real_size in zip("HW", config.input_shape or (None, None), graph.input_size, strict=True):
        if asked is not None and real_size is not None and asked != real_size:
            yield catalogue.INPUT_SHAPE_DIFFERS(path, axis=axis, asked=asked, model=model, real=real_size)
    if 0 in config.dynamic_axes.get(INPUT, {}) and graph.batch is not None:
        yield catalogue.BATCH_DIFFERS(path, model=model, batch=graph.batch)


def compare_with_settings(path: Path, config: DeployConfig, settings: Settings, where: Path) -> Iterator[Finding]:
    """Compare `post_processing` with the thresholds that a repository serves with."""
    asked = {key: getattr(config.settings, key) for key in _set_keys(config)}
    different = {key: value for key, value in asked.items() if value != getattr(settings, key)}
    if different:
        pairs = listed(f"{key} {value} (served: {getattr(settings, key)})" for key, value in different.items())
        step = "the panoptic step" if set(different) <= set(PANOPTIC_KEYS) else "the postprocess step"
        yield catalogue.SETTINGS_DIFFER(where, config=path.name, pairs=pairs, step=step)


def _set_keys(config: DeployConfig) -> list[str]:
    return [key for key in KEYS if getattr(config.settings, key) != getattr(Settings(), key)]


def _unread(path: Path, config: DeployConfig) -> Iterator[Finding]:
    others = []
    for ignored in config.ignored:
        key = ignored.removeprefix(_POST_PROCESSING)
        if key == ignored:
            others.append(key)
        elif close := difflib.get_close_matches(key, KEYS, n=1, cutoff=0.8):
            yield catalogue.KEY_MISSPELT(path, key=key, close=close[0])
        else:
            yield catalogue.KEY_NOT_READ(path, key=key, keys=listed(KEYS))
    if others:
        yield catalogue.KEYS_OF_MMDEPLOY(path, keys=listed(others))
    if keys := _set_keys(config):
        yield catalogue.MMDEPLOY_IGNORES(path, keys=listed(f"{key}={getattr(config.settings, key)}" for key in keys))
    if not config.settings.export_postprocess_mask:
        yield catalogue.MASKS_OFF(path)


def _names(path: Path, config: DeployConfig) -> Iterator[Finding]:
    if config.input_names and config.input_names != (INPUT,):
        yield catalogue.DEPLOY_INPUT_NAMES(path, names=listed(config.input_names))
    names = config.output_names
    if not names or names == RAW_OUTPUTS or set(HEAD_OUTPUTS) <= set(names):
        return
    entry = catalogue.OUTPUT_ORDER if set(names) == set(RAW_OUTPUTS) else catalogue.DEPLOY_OUTPUT_NAMES
    yield entry(path, names=listed(names), wanted=listed(RAW_OUTPUTS), outputs=list(RAW_OUTPUTS))


def _graph(path: Path, config: DeployConfig) -> Iterator[Finding]:
    if config.opset is not None and config.opset < GRID_SAMPLE_OPSET:
        yield catalogue.DEPLOY_OPSET(path, opset=config.opset)
    free = config.dynamic_axes.get(INPUT, {})
    if config.input_shape is None and not {2, 3} & free.keys():
        yield catalogue.INPUT_SHAPE_MISSING(path)
    if config.input_shape is not None and any(side % 32 for side in config.input_shape):
        height, width = config.input_shape
        yield catalogue.DEPLOY_INPUT_SIZE(path, width=width, height=height)
    if 0 not in free:
        yield catalogue.DEPLOY_BATCH_FIXED(path)


def _backend(path: Path, config: DeployConfig) -> Iterator[Finding]:
    if config.backend is not None and config.backend not in BACKENDS:
        yield catalogue.BACKEND(path, backend=config.backend, backends=listed(BACKENDS))
    if config.backend != "tensorrt" or INPUT not in config.shapes:
        return
    shapes = config.shapes[INPUT]
    batch, *sides = shapes.maximum
    if batch < MAX_BATCH_SIZE:
        wider = [MAX_BATCH_SIZE, *sides]
        yield catalogue.PROFILE_BATCH(path, shape=list(shapes.maximum), batch=batch, limit=MAX_BATCH_SIZE, wider=wider)
    smallest, largest = shapes.minimum[2:], shapes.maximum[2:]
    if config.input_shape is not None and not all(
        low <= side <= high for low, side, high in zip(smallest, config.input_shape, largest, strict=True)
    ):
        yield catalogue.PROFILE_DIFFERS(path, size=config.input_shape, smallest=smallest, largest=largest)
