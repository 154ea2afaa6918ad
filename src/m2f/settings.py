"""The post-processing settings: MMDeploy's `post_processing` keys, checked and typed.

The repository states its own in the `parameters` of `mask2former_postprocess`; a client overrides them
for one request with Triton request parameters of the same names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError, shown
from m2f.profiles import PROFILES

NO_LIMIT = -1
_NAMES_SHOWN = 100  # of a model's classes, in an error message


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How logits become instances. The defaults are mmdetection's own.

    Attributes:
        score_threshold: final score (class score x mask score) must be >= it, 0..1.
        pre_top_k: candidates taken from the Q x C class scores (mmdet's `max_per_image`); -1: all.
        iou_threshold: class-aware NMS drops a mask whose IoU with a better one is above it; 1: off.
        max_output_boxes_per_class: instances kept per class; -1: no limit.
        keep_top_k: instances kept per image, after everything else; -1: no limit.
        background_label_id: -1: no-object is the last class column; 0: the first. Not given: where `semantics` has it.
            It belongs to the model: a request that changes the semantics leaves it as it is.
        export_postprocess_mask: false: no full-size masks are made, `rle` and `masks` are empty.
        classes: only these classes, by index or name, comma-separated; empty: all.
        class_score_thresholds: thresholds of single classes in place of `score_threshold`: `"circle=0.7,2=0.3"`.
        panoptic_score_threshold: class score of a query must be above it to get pixels of the panoptic map, 0..1.
        panoptic_overlap_threshold: share of a query's own mask that it must win there, 0..1.
        panoptic_filter_low_score: pixels that a query wins outside its own mask stay void.
        semantics: whose post-processing is reproduced.
    """

    score_threshold: float = 0.0
    pre_top_k: int = 100
    iou_threshold: float = 1.0
    max_output_boxes_per_class: int = NO_LIMIT
    keep_top_k: int = NO_LIMIT
    background_label_id: int = None  # type: ignore[assignment] # a number once it is made
    export_postprocess_mask: bool = True
    classes: str = ""
    class_score_thresholds: str = ""
    panoptic_score_threshold: float = 0.8
    panoptic_overlap_threshold: float = 0.8
    panoptic_filter_low_score: bool = True
    semantics: str = "mmdet"

    def __post_init__(self) -> None:
        _check("semantics", self.semantics)
        if self.background_label_id is None:
            object.__setattr__(self, "background_label_id", PROFILES[self.semantics].background_label_id)
        for field in fields(self):
            _check(field.name, getattr(self, field.name))

    @classmethod
    def from_repository(cls, parameters: Mapping[str, str]) -> Settings:
        """Read the settings out of a model's `parameters` block, where every value is a string.

        Keys that are not settings (class names, mask stride) are left to whoever uses them.

        Raises:
            InputError: a value of the wrong type or out of range.
        """
        return cls(**{name: _parse(name, parameters[name]) for name in KEYS if name in parameters})

    def override(self, parameters: Mapping[str, Any]) -> Settings:
        """Return these settings with a request's parameters on top.

        Raises:
            InputError: unknown key, wrong type or out of range; the message names the key and what is allowed.
        """
        for name in parameters:
            if name not in KEYS:
                raise InputError(
                    f"unknown request parameter {shown(name)}; allowed: {', '.join(KEYS)}", kind="parameter"
                )
        return replace(self, **parameters) if parameters else self

    def class_indices(self, class_names: tuple[str, ...], num_classes: int) -> frozenset[int] | None:
        """Resolve `classes` to class indices; None means all.

        Raises:
            InputError: a name the model does not have, or an index outside 0..num_classes-1.
        """
        if not self.classes.strip():
            return None
        words = dict.fromkeys(word.strip() for word in self.classes.split(","))
        return frozenset(map(_class_finder("classes", class_names, num_classes), words))

    def thresholds(self, class_names: tuple[str, ...], num_classes: int) -> npt.NDArray[np.float32]:
        """Return what the score of each class must reach: float32 [C].

        Raises:
            InputError: `class_score_thresholds` names a class the model does not have, or one class twice.
        """
        thresholds = np.full(num_classes, self.score_threshold, np.float32)
        named = set()
        find = _class_finder("class_score_thresholds", class_names, num_classes)
        for word, threshold in _threshold_pairs(self.class_score_thresholds):
            label = find(word)
            if label in named:
                raise InputError(
                    f"parameter 'class_score_thresholds' has class {label} twice; allowed: once", kind="parameter"
                )
            named.add(label)
            thresholds[label] = threshold
        return thresholds


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_limit(value: Any) -> bool:
    return _is_int(value) and (value >= 1 or value == NO_LIMIT)


def _threshold_pairs(text: str) -> list[tuple[str, float]]:
    """Read `"circle=0.7,2=0.3"`; a name may hold an equals sign. ValueError: not a number."""
    words = [word.rpartition("=") for word in text.split(",")] if text.strip() else []
    return [(name.strip(), float(value)) for name, _, value in words]


def _are_thresholds(value: Any) -> bool:
    try:
        return isinstance(value, str) and all(word and 0 <= number <= 1 for word, number in _threshold_pairs(value))
    except ValueError:
        return False


KEYS = tuple(field.name for field in fields(Settings))
PANOPTIC_KEYS = tuple(name for name in KEYS if name.startswith("panoptic_"))
_TEXT_KEYS = ("classes", "class_score_thresholds", "semantics")

_FRACTION = "a number from 0 to 1"
_LIMIT = "a whole number >= 1, or -1 for no limit"
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "score_threshold": (_FRACTION, lambda v: _is_number(v) and 0 <= v <= 1),
    "pre_top_k": (_LIMIT, _is_limit),
    "iou_threshold": (_FRACTION, lambda v: _is_number(v) and 0 <= v <= 1),
    "max_output_boxes_per_class": (_LIMIT, _is_limit),
    "keep_top_k": (_LIMIT, _is_limit),
    "background_label_id": ("-1 (no-object comes last) or 0 (first)", lambda v: _is_int(v) and v in (-1, 0)),
    "export_postprocess_mask": ("true or false", lambda v: isinstance(v, bool)),
    "classes": ("a string of class indices or names, comma-separated", lambda v: isinstance(v, str)),
    "class_score_thresholds": ('a string such as "circle=0.7,2=0.3", each threshold from 0 to 1', _are_thresholds),
    "panoptic_score_threshold": (_FRACTION, lambda v: _is_number(v) and 0 <= v <= 1),
    "panoptic_overlap_threshold": (_FRACTION, lambda v: _is_number(v) and 0 <= v <= 1),
    "panoptic_filter_low_score": ("true or false", lambda v: isinstance(v, bool)),
    "semantics": ("one of: " + ", ".join(PROFILES), lambda v: v in tuple(PROFILES)),
}


def model_facts(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Read what a step's `parameters` block says of the model, not of the request: arguments of `postprocess`.

    Raises:
        InputError: a value that cannot be read.
    """
    return {
        "class_names": tuple(json.loads(parameters.get("class_names", "[]"))),
        "thing_classes": thing_classes(parameters),
        "mask_stride": whole_number(parameters, "mask_stride", 4),
    }


def thing_classes(parameters: Mapping[str, str]) -> frozenset[int] | None:
    """Read which classes are countable from a model's `parameters` block; None, where it does not say: all.

    Raises:
        InputError: `thing_classes` is not a JSON list of class indices.
    """
    text = parameters.get("thing_classes")
    if text is None:
        return None
    try:
        indices = json.loads(text)
    except json.JSONDecodeError:
        indices = None
    if not isinstance(indices, list) or not all(_is_int(index) and index >= 0 for index in indices):
        raise InputError(
            f"parameter 'thing_classes' must be a JSON list of class indices; got {shown(text)}", kind="parameter"
        )
    return frozenset(indices)


def whole_number(parameters: Mapping[str, str], name: str, default: int) -> int:
    """Read a whole number from 1 on, such as `mask_stride`, from a model's `parameters` block.

    Raises:
        InputError: it is not one.
    """
    text = parameters.get(name, str(default)).strip()
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"parameter '{name}' must be a whole number >= 1; got {shown(text)}", kind="parameter")
    return int(text)


def _check(name: str, value: object) -> None:
    allowed, accepts = _ALLOWED[name]
    if not accepts(value):
        raise InputError(f"parameter '{name}' must be {allowed}; got {shown(value)}", kind="parameter")


def _parse(name: str, text: str) -> Any:
    if name in _TEXT_KEYS:
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise InputError(
            f"parameter '{name}' must be {_ALLOWED[name][0]}; got {shown(text)}", kind="parameter"
        ) from None


def _class_finder(key: str, class_names: tuple[str, ...], num_classes: int) -> Callable[[str], int]:
    """Return what finds a class by its name, the first where several have it, or by its index, or raises InputError."""
    by_name = {name: index for index, name in reversed(list(enumerate(class_names[:num_classes])))}

    def find(word: str) -> int:
        if word in by_name:
            return by_name[word]
        if word.isdecimal() and len(word) <= len(str(num_classes)) and int(word) < num_classes:
            return int(word)
        more = f" and {len(class_names) - _NAMES_SHOWN} more" if len(class_names) > _NAMES_SHOWN else ""
        known = f"; names: {', '.join(class_names[:_NAMES_SHOWN])}{more}" if class_names else ""
        raise InputError(
            f"parameter '{key}' has no class {shown(word)}; allowed: 0 to {num_classes - 1}{known}", kind="parameter"
        )

    return find
