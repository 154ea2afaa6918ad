"""An ONNX file of any origin and its description, a JSON file -> Source.

The description's keys are those of a repository's configurations, as docs/parameters.md lists them. What the graph
states by itself, such as its layout, is not in the description.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2f.class_lists import ClassNames
from m2f.errors import InputError, shown
from m2f.model_facts import ModelFacts
from m2f.parameters import COUNT, check_value, is_int, is_number
from m2f.preprocess import Preprocessing, channels_of
from m2f.settings import KEYS, Settings
from m2f_export.export_errors import ExportError
from m2f_export.files import read_object
from m2f_export.onnx_files import MAX_INPUT_SIDE, check_input_size
from m2f_export.sources.base import Source, checked_names
from m2f_export.sources.onnx_model import graph_input

_PREPROCESSING = tuple(
    name for name in Preprocessing.__dataclass_fields__ if name not in ("layout", "max_pixels", "max_bytes")
)
DESCRIPTION_KEYS = (*_PREPROCESSING, "class_names", "thing_classes", "mask_stride", "post_processing")
_OF_FLOATS = ("mean", "std", "float_pad_value", "float_resize")  # a graph that takes pixels does this by itself
_OF_PIXELS = ("pad_value",)


def describe_onnx(graph: Path, description: Path) -> Source:
    """Read the description of an ONNX file.

    Args:
        graph: the ONNX file; `adopt_onnx` checks the rest of it.
        description: a JSON object with the keys `DESCRIPTION_KEYS`.

    Returns:
        The source without a network.

    Raises:
        ExportError: the description has an unknown key, lacks a key, or has a value that is not allowed or that the
            graph contradicts; the message names the file, the key and what is allowed.
    """
    stated = read_object(description)
    layout, size = graph_input(graph, channels_of(stated.get("color")))
    _check_keys(stated, layout, description)
    names = _class_names(stated["class_names"], description)
    try:
        things = _things(stated.get("thing_classes"), names)
        stride = stated.get("mask_stride")
        if stride is not None:
            check_value("mask_stride", stride, COUNT)
        preprocessing = _preprocessing(stated, layout, size)
        settings = _settings(stated.get("post_processing", {}), names)
    except InputError as error:
        raise ExportError(f"{description}: {error}") from error
    _check_sides(preprocessing, description)
    if preprocessing.input_size:
        check_input_size(preprocessing.input_size, f"{description}: input_size")
    return Source(
        kind="described ONNX",
        network=None,
        preprocessing=preprocessing,
        num_classes=len(names),
        facts=ModelFacts(class_names=names, thing_classes=things, mask_stride=stride or ModelFacts.mask_stride),
        settings=settings,
        states_stride=stride is not None,
        states_threshold="score_threshold" in stated.get("post_processing", {}),
    )


def _check_sides(preprocessing: Preprocessing, path: Path) -> None:
    """Refuse an input that no memory holds, and a mean that is no number; the longer edge may be without a limit."""
    sides = {"scale": min(preprocessing.scale or (1,)), "pad_divisor": preprocessing.pad_divisor}
    for key, side in sides.items():
        if side > MAX_INPUT_SIDE:
            raise ExportError(f"{path}: {key} makes inputs of {side} pixels; allowed: up to {MAX_INPUT_SIDE}")
    for key in ("mean", "std"):
        if not all(abs(value) < math.inf for value in getattr(preprocessing, key)):
            raise ExportError(f"{path}: {key} is {list(getattr(preprocessing, key))}; allowed: finite numbers")


def _check_keys(stated: Mapping[str, Any], layout: str, path: Path) -> None:
    if unknown := sorted(stated.keys() - set(DESCRIPTION_KEYS)):
        raise ExportError(f"{path}: unknown key {shown(unknown[0])}; allowed: {', '.join(DESCRIPTION_KEYS)}")
    takes_pixels = layout == "uint8_hwc"
    required = ("scale", "class_names") if takes_pixels else ("scale", "class_names", "mean", "std")
    if missing := [key for key in required if key not in stated]:
        graph = "pixels" if takes_pixels else "floats"
        raise ExportError(f"{path}: {missing[0]} is missing; a graph that takes {graph} needs: {', '.join(required)}")
    idle = [key for key in (_OF_FLOATS if takes_pixels else _OF_PIXELS) if key in stated]
    if idle and takes_pixels:
        raise ExportError(f"{path}: {idle[0]} has no effect: the graph takes uint8 pixels and normalises by itself")
    if idle:
        raise ExportError(f"{path}: {idle[0]} has no effect: the graph takes floats; allowed: float_pad_value")


def _class_names(stated: object, path: Path) -> tuple[str, ...]:
    if not isinstance(stated, list) or not stated:
        raise ExportError(f'{path}: class_names is {shown(stated)}; allowed: a list of names, such as ["cat", "dog"]')
    return checked_names(stated, f"{path}: class_names")


def _things(stated: object, names: tuple[str, ...]) -> frozenset[int] | None:
    if stated is None:
        return None
    if not isinstance(stated, list) or not all(isinstance(item, str) or is_int(item) for item in stated):
        raise InputError(
            f"parameter 'thing_classes' must be a list of class names or indices; got {shown(stated)}", kind="parameter"
        )
    return frozenset(ClassNames(names, len(names)).labels(json.dumps(stated), key="thing_classes"))


def _preprocessing(stated: Mapping[str, Any], layout: str, size: tuple[int, int] | None) -> Preprocessing:
    values = {key: _hashable(stated[key]) for key in _PREPROCESSING if key in stated}
    if size and values.setdefault("input_size", size) != size:
        raise InputError(
            f"parameter 'input_size' is {shown(stated['input_size'])}, and the graph takes {list(size)} only",
            kind="parameter",
        )
    preprocessing = Preprocessing(**values, layout=layout)
    if not all(is_number(value) and value >= 1 for value in preprocessing.std):
        raise InputError(
            f"parameter 'std' is {list(preprocessing.std)}; allowed: three numbers >= 1, because pixels are 0 to 255: "
            "multiply mean and std of pixels 0 to 1 by 255",
            kind="parameter",
        )
    return preprocessing


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _settings(stated: object, names: tuple[str, ...]) -> Settings:
    if not isinstance(stated, dict):
        raise InputError(
            f"parameter 'post_processing' must be an object such as {{\"score_threshold\": 0.5}}; got {shown(stated)}",
            kind="parameter",
        )
    if unknown := sorted(stated.keys() - set(KEYS)):
        raise InputError(
            f"post_processing has no key {shown(unknown[0])}; allowed: {', '.join(KEYS)}", kind="parameter"
        )
    settings = Settings(**stated)
    settings.class_indices(names, len(names))  # both refuse a class that there is not
    settings.thresholds(names, len(names))
    return settings
