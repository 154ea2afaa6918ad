"""The options of an mmdetection configuration that are understood, and the values of each that the server reproduces.

An option that is in no table is refused by file and key, and so is a value that its table does not allow. A table lists
options without effect on a test image too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from m2f.errors import shown
from m2f.limits import MAX_INPUT_PIXELS
from m2f.parameters import BOOLEAN, COUNT, FRACTION, Allowed, is_int, is_number
from m2f_export.export_errors import ExportError
from m2f_export.quiet import quiet

if TYPE_CHECKING:
    from mmengine.registry import Registry

_SCOPES = ("mmdet", "mmcv", "mmengine")
_LARGEST, _SMALLEST = 1e9, 1e-6  # of a number that normalises


@dataclass(frozen=True)
class Place:
    """A key of a configuration file, for messages: `c.py: model.test_cfg`."""

    file: Path
    key: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}"

    def at(self, name: object) -> Place:
        """Return the place of an entry of this one: a key of a dict, or an index of a list."""
        return Place(self.file, f"{self.key}[{name}]" if isinstance(name, int) else f"{self.key}.{name}")

    def refusal(self, value: object, allowed: str) -> ExportError:
        """Return the error that refuses the value at this place."""
        return ExportError(f"{self} is {named(value)}; allowed: {allowed}")


@dataclass(frozen=True)
class Option:
    """An option that is understood.

    Attributes:
        default: mmdetection's own default.
        allowed: the values that the server reproduces.
    """

    default: Any
    allowed: Allowed


Table: TypeAlias = Mapping[str, Option]


def read_options(options: object, table: Table, place: Place) -> dict[str, Any]:
    """Return the value of every option of a table; `type` is not read.

    Args:
        options: a part of a configuration.
        table: the options that are understood.
        place: the key of the part, for messages.

    Raises:
        ExportError: the part is not a dict, an option is not in the table, or a value is not allowed.
    """
    if not isinstance(options, Mapping):
        raise place.refusal(options, "a dict")
    table = {"_scope_": _SCOPE, **table}
    for name in options:
        if name not in table and name != "type":
            known = ", ".join(key for key in table if not key.startswith("_"))
            raise ExportError(f"{place.at(name)} is not an option that m2f export knows; allowed: {known}")
    values = {name: options.get(name, option.default) for name, option in table.items()}
    for name, value in values.items():
        if not table[name].allowed.accepts(value):
            raise place.at(name).refusal(value, table[name].allowed.text)
    return values


def class_of(stated: object, registry: Registry) -> type | None:
    """Return the class that a `type` means; None if there is no such class.

    Args:
        stated: a name, `Resize`; with its scope, `mmdet.Resize`; an import path; or the class itself.
        registry: mmdetection's registry of such classes.
    """
    if not isinstance(stated, str):
        return stated if isinstance(stated, type) else None
    scope, _, name = stated.rpartition(".")
    found = _found(stated, registry)
    # mmcv's steps are also those of mmdetection: `mmdet.LoadImageFromFile`
    return _found(name, registry) if found is None and scope in _SCOPES else found


def _found(name: str, registry: Registry) -> type | None:
    try:
        with quiet():
            found = registry.get(name)
    except (Exception, SystemExit):  # whatever an import raises
        return None
    return found if isinstance(found, type) else None


def named(value: object) -> str:
    """Return a value for an error message; a class by its name."""
    return repr(value.__name__) if isinstance(value, type) else shown(value)


def only(*values: Any) -> Allowed:
    """Allow some values, each of its own type: 1 is not True."""
    return Allowed(
        " or ".join(map(repr, values)),
        lambda value: any(type(value) is type(each) and value == each for each in values),
    )


def whole_number(first: int, last: int) -> Allowed:
    """Allow a range of whole numbers."""
    return Allowed(f"a whole number from {first} to {last}", lambda value: is_int(value) and first <= value <= last)


def is_finite(value: object) -> bool:
    """Return whether a value is a number that float32 holds well; NaN is not."""
    return is_number(value) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def _vector(text: str, accepts: Callable[[Any], bool]) -> Allowed:
    return Allowed(
        f"one {text}, or three in a list, or None",
        lambda value: (
            value is None or (isinstance(value, list | tuple) and len(value) in (1, 3) and all(map(accepts, value)))
        ),
    )


def _is_scale(value: Any) -> bool:
    if is_int(value):
        return bool(value >= 1)
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_edge, value)) and min(value) < math.inf


def _is_edge(value: Any) -> bool:
    return is_number(value) and value >= 1 and (value == math.inf or value == int(value))


def _or_none(allowed: Allowed) -> Allowed:
    return Allowed(f"None, or {allowed.text}", lambda value: value is None or allowed.accepts(value))


def _is_factor(value: Any) -> bool:
    factors = value if isinstance(value, tuple | list) and len(value) == 2 else (value,)
    return value is None or all(is_number(factor) and 1e-3 <= factor <= 1e3 for factor in factors)


def _is_size(value: Any) -> bool:
    return value is None or (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(map(COUNT.accepts, value))
        and math.prod(value) <= MAX_INPUT_PIXELS
    )


def _is_pad_value(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = value.get("img", 0)
        levels = value if isinstance(value, tuple | list) and len(value) == 3 else (value,)
    else:
        levels = (value,)
    return all(is_int(level) and 0 <= level <= 255 for level in levels)


# --- the tables ------------------------------------------------------------------------------------------------------

_SCOPE = Option(None, only(None, *_SCOPES))  # mmengine adds this key to what a base states
NO_EFFECT = Option(None, Allowed("anything", lambda _: True))
_FLAG = Option(False, BOOLEAN)
_DIVISOR = whole_number(1, int(MAX_INPUT_PIXELS**0.5))

LOAD_IMAGE: Table = {
    "color_type": Option(
        "color", only("color", "color_ignore_orientation", "grayscale", "grayscale_ignore_orientation")
    ),
    "to_float32": _FLAG,
    "imdecode_backend": Option("cv2", only("cv2")),
    "ignore_empty": NO_EFFECT,
    "file_client_args": NO_EFFECT,
    "backend_args": NO_EFFECT,
}

LOAD_ANNOTATIONS: Table = dict.fromkeys(
    ("with_bbox", "with_label", "with_seg", "with_keypoints", "with_mask", "poly2mask", "box_type", "reduce_zero_label",
     "ignore_index", "imdecode_backend", "file_client_args", "backend_args"),
    NO_EFFECT,
)  # fmt: skip

_SCALE = Option(None, Allowed("a whole number >= 1, or two; the longer edge may be inf", _is_scale))
_RESIZE: Table = {
    "backend": Option("cv2", only("cv2", "pillow")),
    "interpolation": Option("bilinear", Allowed("a word", lambda value: isinstance(value, str))),
    "clip_object_border": NO_EFFECT,
}

RESIZE: Table = {
    **_RESIZE,
    "scale": Option(None, _or_none(_SCALE.allowed)),
    "scale_factor": Option(None, Allowed("None, or a number from 0.001 to 1000, or two of width, height", _is_factor)),
    "keep_ratio": _FLAG,
}

SHORTEST_EDGE: Table = {
    **_RESIZE,
    "scale": _SCALE,
    "max_size": Option(None, _or_none(COUNT)),
    "resize_type": Option("Resize", only("Resize", "mmdet.Resize")),
    "keep_ratio": Option(False, only(False)),
}

PAD: Table = {
    "size": Option(None, Allowed(f"None, or width and height, of at most {MAX_INPUT_PIXELS} pixels", _is_size)),
    "size_divisor": Option(None, _or_none(_DIVISOR)),
    "pad_to_square": _FLAG,
    "pad_val": Option(0, Allowed("a whole number from 0 to 255, or dict(img=...) of it or of three", _is_pad_value)),
    "padding_mode": Option("constant", only("constant")),
}

PACK: Table = {"meta_keys": NO_EFFECT}

_NAMES = Allowed(
    "names, or a name, or the path of a file of names",
    lambda value: (
        value is None
        or isinstance(value, str)
        or (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value))
    ),
)
METAINFO: Table = {
    "classes": Option(None, _NAMES),
    "CLASSES": Option(None, _NAMES),  # mmdetection 2's spelling
    # the colours of drawings, and words for evaluators; the model's head says which classes are things
    **dict.fromkeys(
        ("palette", "PALETTE", "thing_classes", "stuff_classes", "dataset_type", "task_name"),
        NO_EFFECT,
    ),
}

DATA_PREPROCESSOR: Table = {
    "mean": Option(None, _vector("number", is_finite)),
    "std": Option(None, _vector("number other than 0", lambda value: is_finite(value) and abs(value) >= _SMALLEST)),
    "bgr_to_rgb": _FLAG,
    "rgb_to_bgr": _FLAG,
    "pad_size_divisor": Option(1, _DIVISOR),
    "pad_value": Option(0, Allowed("a number", is_finite)),
    # for labels, devices and training
    **dict.fromkeys(
        ("pad_mask", "mask_pad_value", "pad_seg", "seg_pad_value", "boxtype2tensor", "non_blocking", "batch_augments"),
        NO_EFFECT,
    ),
}

TEST_CFG: Table = {
    "max_per_image": Option(100, COUNT),
    "object_mask_thr": Option(0.8, FRACTION),
    "iou_thr": Option(0.8, FRACTION),
    "filter_low_score": _FLAG,
    # a request says which outputs it wants; mmdetection's Mask2Former has no semantic output
    "panoptic_on": Option(True, BOOLEAN),
    "instance_on": _FLAG,
    "semantic_on": Option(False, only(False)),
}
