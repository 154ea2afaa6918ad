"""The post-processing settings: MMDeploy's `post_processing` keys, checked and typed.

A repository states a setting in the `parameters` of the step that reads it: the `PANOPTIC_KEYS` in the step that makes
`panoptic`, the `SEMANTIC_KEYS` in the step that makes `semantic`, all others in the step that makes the instances. A
client overrides settings for one request with Triton request parameters of the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.class_lists import LABELS, THRESHOLDS, ClassNames
from m2f.errors import InputError, shown
from m2f.parameters import (
    BOOLEAN,
    FRACTION,
    LIMIT,
    NO_LIMIT,
    Allowed,
    Parameters,
    check_value,
    is_int,
    one_of,
    parameter,
)
from m2f.profiles import PROFILES

_SEMANTICS = one_of(PROFILES)
_PANOPTIC = one_of(("mmdet", "huggingface", "huggingface_maskformer"))
_RESIZES = one_of(("logits", "scores"))
_BACKGROUND = Allowed("-1 (no-object comes last) or 0 (first)", lambda value: is_int(value) and value in (-1, 0))


@dataclass(frozen=True, kw_only=True)
class Settings(Parameters):
    """How logits become instances. The defaults are mmdetection's own; docs/parameters.md has a table of the fields."""

    score_threshold: float = parameter(0.0, FRACTION, "smallest final score of an instance, 0 to 1")
    pre_top_k: int = parameter(100, LIMIT, "number of candidates taken from the Q x C class scores; -1: all")
    iou_threshold: float = parameter(
        1.0, FRACTION, "class-aware mask NMS: drops a mask whose IoU with a better mask is above this; 1: off"
    )
    max_output_boxes_per_class: int = parameter(NO_LIMIT, LIMIT, "largest number of instances per class; -1: no limit")
    keep_top_k: int = parameter(NO_LIMIT, LIMIT, "largest number of instances per image, applied last; -1: no limit")
    background_label_id: int = parameter(
        None, _BACKGROUND, "column of no-object in the class logits: -1 the last, 0 the first"
    )
    export_postprocess_mask: bool = parameter(True, BOOLEAN, "false: `rle`, `masks` and `packed_masks` come back empty")
    classes: str = parameter("", LABELS, 'only these classes, by index or name: `"0,2"`, `"circle,ring"`; empty: all')
    class_score_thresholds: str = parameter(
        "", THRESHOLDS, 'thresholds of single classes in place of `score_threshold`: `"circle=0.7,2=0.3"`'
    )
    panoptic_score_threshold: float = parameter(
        0.8, FRACTION, "a query gets pixels of `panoptic` only if its class score is above this"
    )
    panoptic_overlap_threshold: float = parameter(
        0.8, FRACTION, "a query that wins less than this share of its own mask is void in `panoptic`"
    )
    panoptic_filter_low_score: bool = parameter(
        True, BOOLEAN, "true: pixels that a query wins outside its own mask are void in `panoptic`"
    )
    panoptic_semantics: str = parameter(
        "mmdet", _PANOPTIC, "the system whose `panoptic` is made: `mmdet`, `huggingface` or `huggingface_maskformer`"
    )
    semantic_resize: str = parameter(
        "logits", _RESIZES, "what is resized to the image for `semantic`: mask `logits`, or `scores` of the classes"
    )
    semantics: str = parameter(
        "mmdet", _SEMANTICS, "the system whose post-processing is used: `mmdet`, `detectron2`, `huggingface`, `tao`"
    )

    def __post_init__(self) -> None:
        check_value("semantics", self.semantics, _SEMANTICS)
        if self.background_label_id is None:
            object.__setattr__(self, "background_label_id", PROFILES[self.semantics].background_label_id)
        super().__post_init__()

    def override(self, parameters: Mapping[str, Any]) -> Settings:
        """Return these settings, changed by a request's parameters.

        Raises:
            InputError: a key is unknown, or a value has the wrong type or is out of range; the message names the key
                and what is allowed.
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
            InputError: a name that the model does not have, or an index outside 0..num_classes-1.
        """
        if not self.classes.strip():
            return None
        return frozenset(ClassNames(class_names, num_classes).labels(self.classes)) or None

    def thresholds(self, class_names: tuple[str, ...], num_classes: int) -> npt.NDArray[np.float32]:
        """Return the lowest score of an instance of each class: float32 [C].

        Raises:
            InputError: `class_score_thresholds` names a class that the model does not have, or names a class twice.
        """
        thresholds = np.full(num_classes, self.score_threshold, np.float32)
        if not self.class_score_thresholds.strip():
            return thresholds
        named = set()
        for label, threshold in ClassNames(class_names, num_classes).thresholds(self.class_score_thresholds):
            if label in named:
                raise InputError(
                    f"parameter 'class_score_thresholds' has class {label} twice; allowed: once", kind="parameter"
                )
            named.add(label)
            thresholds[label] = threshold
        return thresholds


KEYS = tuple(Settings.__dataclass_fields__)
PANOPTIC_KEYS = tuple(name for name in KEYS if name.startswith("panoptic_"))
SEMANTIC_KEYS = tuple(name for name in KEYS if name.startswith("semantic_"))
INSTANCE_KEYS = tuple(name for name in KEYS if name not in (*PANOPTIC_KEYS, *SEMANTIC_KEYS))
