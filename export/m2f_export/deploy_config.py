"""Read MMDeploy's deploy configs: `.py` with `_base_`, the same as JSON, and the SDK's three JSON files.

MMDeploy ignores `post_processing` for Mask2Former (open-mmlab/mmdeploy#2775); here it becomes the `Settings` of the
repository. The keys are those of MMDeploy 1.3.1: `mmdeploy/utils/config_utils.py`, and for the SDK's `deploy.json`,
`pipeline.json` and `detail.json`, `mmdeploy/backend/sdk/export_info.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from m2f.errors import InputError
from m2f.parameters import is_int
from m2f.settings import KEYS, PANOPTIC_KEYS, SEMANTIC_KEYS, Settings
from m2f_export.export_errors import ExportError, reason
from m2f_export.files import check_file, read_json

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The shapes of one input that a TensorRT engine is built for: [N, C, H, W], as in the file."""

    minimum: Shape
    optimum: Shape
    maximum: Shape


@dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """The contents of a deploy config; an absent key is None, empty or false.

    Attributes:
        settings: `codebase_config.post_processing`; absent keys have m2f's defaults, which are mmdetection's.
        input_names: names of the ONNX graph's inputs.
        output_names: names of the ONNX graph's outputs.
        opset: opset of the ONNX graph.
        input_shape: height and width (MMDeploy writes width and height); None: not fixed.
        dynamic_axes: tensor -> axis -> name of the axis.
        save_file: name of the ONNX file.
        backend: `tensorrt`, `onnxruntime`, ...
        fp16: whether half precision is wanted.
        shapes: input -> the shapes that a TensorRT engine is built for.
        max_workspace_size: bytes that TensorRT may use while it builds; 0: no limit is given.
        ignored: paths of the keys in the file that nothing here reads.
    """

    settings: Settings = field(default_factory=Settings)
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    opset: int | None = None
    input_shape: tuple[int, int] | None = None
    dynamic_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    save_file: str | None = None
    backend: str | None = None
    fp16: bool = False
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    max_workspace_size: int = 0
    ignored: tuple[str, ...] = ()

    def settings_for(self, own: Settings) -> Settings:
        """Return the settings, with the model's own rules for maps where the file leaves them at their defaults.

        MMDeploy has no keys for panoptic and semantic segmentation, so most files do not set them.

        Args:
            own: the settings that come with the model.
        """
        keys = (*PANOPTIC_KEYS, *SEMANTIC_KEYS)
        silent = [key for key in keys if getattr(self.settings, key) == getattr(Settings(), key)]
        return replace(self.settings, **{key: getattr(own, key) for key in silent})


def read_deploy_config(path: Path) -> DeployConfig:
    """Read a deploy config of MMDeploy.

    A `.py` file is executed, as MMDeploy does: read only files you trust. Of the SDK's files `detail.json` holds the
    deploy config, so a `detail.json` in the same folder is read instead of `deploy.json` or `pipeline.json`. Alone,
    `deploy.json` gives only backend and precision, `pipeline.json` only the model's own threshold and limit.

    Args:
        path: a `.py` or `.json` file.

    Raises:
        ExportError: the file or its `_base_` is missing, the file is no deploy config, or a value is not allowed; the
            message names the file, the key, the value and what is allowed.
    """
    check_file(path)
    readers = {".py": _load_python, ".json": _load_json}
    if path.suffix not in readers:
        raise ExportError(f"{path}: a deploy config is a .py or .json file")
    content = readers[path.suffix](path)
    if not isinstance(content, dict):
        raise ExportError(f"{path}: holds {type(content).__name__}, not an object with 'onnx_config'")
    try:
        return _interpret(_Section(content))
    except InputError as error:
        raise ExportError(f"{path}: {error}") from error


def _load_python(path: Path) -> Any:
    try:
        from mmengine.config import Config  # noqa: PLC0415 - JSON needs no OpenMMLab
    except ModuleNotFoundError as error:
        raise ExportError(f"{path}: a .py deploy config needs mmengine (no module named {error.name!r})") from error
    try:
        return dict(Config.fromfile(path).to_dict())
    except FileNotFoundError as error:
        raise ExportError(
            f"{path}: its `_base_` is missing: {reason(error)}. MMDeploy's base configs are in its source tree under "
            "configs/, not in its wheel: keep the file at its place in that tree, or give the JSON"
        ) from error
    except (Exception, SystemExit) as error:  # the file is a program: it may raise anything, and end
        raise ExportError(f"{path}: cannot be read as an mmengine config: {reason(error)}") from error


def _load_json(path: Path) -> Any:
    content = read_json(path)
    if not isinstance(content, dict) or not {"models", "pipeline"} & content.keys():
        return content
    detail = path.with_name("detail.json")
    if detail.is_file() and detail != path:
        return _load_json(detail)
    return _from_sdk(content)


# mmdetection's test_cfg; its iou_thr is the panoptic overlap, not NMS
_TEST_CFG = {
    "score_thr": "score_threshold",
    "max_per_image": "pre_top_k",
    "object_mask_thr": "panoptic_score_threshold",
    "iou_thr": "panoptic_overlap_threshold",
    "filter_low_score": "panoptic_filter_low_score",
}


def _from_sdk(content: dict[str, Any]) -> dict[str, Any]:
    """Translate `deploy.json` or `pipeline.json` into a deploy config; other keys are dropped."""
    sdk = _Section(content)
    models = sdk.take("models", _A_LIST, list, [])
    deploy: dict[str, Any] = {}
    if models:
        model = _Section(models[0] if isinstance(models[0], dict) else {})
        precision = model.take("precision", _TEXT, str, "FP32").lower()
        deploy["backend_config"] = {"type": model.take("backend", _TEXT, str, None), "precision": precision}
    tasks = sdk.section("pipeline").take("tasks", _A_LIST, list, [])
    for task in (_Section(task) for task in tasks if isinstance(task, dict)):
        if task.content.get("name") == "postprocess":
            params = dict(task.section("params").content)
            deploy["codebase_config"] = {"post_processing": {_TEST_CFG.get(key, key): v for key, v in params.items()}}
        elif task.content.get("module") == "Net":
            deploy["onnx_config"] = {"input_names": list(task.section("input_map").content.values())}
    return deploy


_TEXT, _A_LIST, _OBJECT = "a string", "a list", "an object"


class _Section:
    """A dictionary of the file that records which of its keys were read."""

    def __init__(self, content: dict[str, Any], path: str = "") -> None:
        self.content, self.path = content, path
        self.read: set[str] = set()
        self.sections: list[_Section] = []

    def take(self, key: str, allowed: str, accepts: type | Callable[[Any], bool], default: Any) -> Any:
        """Return a value; the default if the key is absent or None."""
        self.read.add(key)
        value = self.content.get(key)
        if value is None:
            return default
        if not (isinstance(value, accepts) if isinstance(accepts, type) else accepts(value)):
            raise InputError(f"'{self.path}{key}' must be {allowed}; got {value!r}")
        return value

    def section(self, key: str) -> _Section:
        inner = _Section(self.take(key, _OBJECT, dict, {}), f"{self.path}{key}.")
        self.sections.append(inner)
        return inner

    def unread(self) -> list[str]:
        mine = [f"{self.path}{key}" for key in self.content if key not in self.read]
        return mine + [key for section in self.sections for key in section.unread()]


def _interpret(file: _Section) -> DeployConfig:
    if not {"codebase_config", "onnx_config", "ir_config", "backend_config"} & file.content.keys():
        raise InputError(
            "not a deploy config: none of 'codebase_config', 'onnx_config' (or 'ir_config') and 'backend_config' "
            f"is in it; its keys: {', '.join(map(str, file.content)) or 'none'}"
        )
    file.read |= {"version", "codebase"}  # detail.json records its origin there
    codebase = file.section("codebase_config")
    codebase.take("type", "'mmdet'", lambda v: v == "mmdet", None)
    codebase.read |= {"task", "model_type"}
    settings = _settings(codebase.section("post_processing"))
    graph = file.section("ir_config" if "ir_config" in file.content else "onnx_config")
    graph.take("type", "'onnx'", lambda v: v == "onnx", None)
    inputs, outputs = _names(graph, "input_names"), _names(graph, "output_names")
    size = graph.take("input_shape", "[width, height] in pixels, or null", lambda v: _is_shape(v, 2), None)
    backend = file.section("backend_config")
    common = backend.section("common_config")
    half = backend.take("precision", _TEXT, str, "").lower() == "fp16"
    return DeployConfig(
        settings=settings,
        input_names=inputs,
        output_names=outputs,
        opset=graph.take("opset_version", "a whole number >= 1", lambda v: is_int(v) and v >= 1, None),
        input_shape=(size[1], size[0]) if size else None,
        dynamic_axes=_dynamic_axes(graph, inputs + outputs),
        save_file=graph.take("save_file", _TEXT, str, None),
        backend=backend.take("type", _TEXT, str, None),
        fp16=common.take("fp16_mode", "true or false", bool, default=False) or half,
        shapes=_shapes(backend),
        max_workspace_size=common.take("max_workspace_size", "bytes, >= 0", lambda v: is_int(v) and v >= 0, 0),
        ignored=tuple(sorted(file.unread())),
    )


def _settings(post_processing: _Section) -> Settings:
    values = {key: value for key, value in post_processing.content.items() if key in KEYS}
    post_processing.read |= values.keys()
    try:
        return Settings(**values)
    except InputError as error:
        raise InputError(f"{post_processing.path.rstrip('.')}: {error}") from error


def _names(graph: _Section, key: str) -> tuple[str, ...]:
    names = graph.take(key, "a list of strings", lambda v: _is_list(v, str), [])
    return tuple(names)


def _dynamic_axes(graph: _Section, names: tuple[str, ...]) -> dict[str, dict[int, str]]:
    """Unify MMDeploy's three spellings: by name or in the order of the names, axes with or without names."""
    allowed = "an object of tensor: {axis: name} or tensor: [axis, ...], or a list of these in the order of the names"
    axes = graph.take("dynamic_axes", allowed, lambda v: isinstance(v, dict | list | tuple), {})
    by_name = axes if isinstance(axes, dict) else dict(zip(names, axes, strict=False))
    try:
        return {
            name: {
                int(axis): str(each[axis]) if isinstance(each, dict) else f"{name}_{axis}" for axis in each
            }
            for name, each in by_name.items()
        }  # fmt: skip
    except (TypeError, ValueError) as error:  # JSON has axes as strings, so only int() can judge them
        raise InputError(f"'{graph.path}dynamic_axes' must be {allowed}; got {axes!r}") from error


def _shapes(backend: _Section) -> dict[str, ShapeRange]:
    one = "a list of one object (partitioned models are not supported)"
    inputs = backend.take("model_inputs", one, lambda v: _is_list(v, dict) and len(v) <= 1, [])
    if not inputs:
        return {}
    first = _Section(inputs[0], f"{backend.path}model_inputs.")
    backend.sections.append(first)
    by_input = first.section("input_shapes")
    return {name: _shape_range(by_input.section(name)) for name in by_input.content}


def _shape_range(shapes: _Section) -> ShapeRange:
    def take(key: str) -> Shape:
        shape = shapes.take(key, "a list of 4 whole numbers >= 1", lambda v: _is_shape(v, 4), None)
        if shape is None:
            raise InputError(f"'{shapes.path}{key}' is missing")
        return tuple(shape)

    found = ShapeRange(minimum=take("min_shape"), optimum=take("opt_shape"), maximum=take("max_shape"))
    if not all(a <= b <= c for a, b, c in zip(found.minimum, found.optimum, found.maximum, strict=True)):
        raise InputError(f"'{shapes.path}': min_shape <= opt_shape <= max_shape must hold on every axis; got {found}")
    return found


def _is_list(value: object, item: type) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, item) for each in value)


def _is_shape(value: object, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length and all(is_int(v) and v >= 1 for v in value)
