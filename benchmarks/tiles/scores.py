"""What was found in a picture against what is in it: average precision, and what became of each object."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SURE = 0.5  # score from which an instance counts as found
_MATCH = 0.5  # IoU of an instance and its object, and share of an instance that lies in its object
_ANY_NUMBER = 1_000_000  # COCO keeps 100 detections of a picture


class Found(NamedTuple):
    """An instance, or an object that is known to be there.

    Attributes:
        picture: number of its picture.
        label: class index.
        score: 1 for what is known.
        rle: COCO's compressed RLE, as pycocotools has it: `size` and `counts`.
    """

    picture: int
    label: int
    score: float
    rle: dict[str, Any]


class Outcome(Enum):
    """What became of an object."""

    ONCE = "once"
    SEVERAL_TIMES = "several times"
    NOT = "not"


def placed(mask: npt.NDArray[np.bool_], x: int, y: int, height: int, width: int) -> dict[str, Any]:
    """Return the RLE of a small mask in a larger picture.

    Args:
        mask: bool [h, w].
        x: column of its left edge in the picture.
        y: row of its upper edge in the picture.
        height: height of the picture in pixels.
        width: width of the picture in pixels.
    """
    changes = np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0)
    columns, rows = np.nonzero(changes.T)  # down the columns: where a run begins, where it ends, where the next begins
    edges = (columns + x) * height + rows + y
    counts = np.diff(edges, prepend=0, append=height * width)
    return dict(coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width))


def average_precision(truth: Sequence[Found], found: Sequence[Found]) -> float:
    """Return COCO's mask AP, for objects of all sizes and any number of instances in a picture."""
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        sizes = {row.picture: row.rle["size"] for row in (*truth, *found)}
        known.dataset = {
            "info": {},
            "images": [{"id": picture, "height": h, "width": w} for picture, (h, w) in sizes.items()],
            "categories": [{"id": label} for label in {row.label for row in truth}],
            "annotations": _annotations(truth),
        }
        known.createIndex()
        judge = COCOeval(known, known.loadRes(_annotations(found)), "segm")
        judge.params.maxDets = [_ANY_NUMBER]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e12]], ["all"]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"]
    return float(precision[precision > -1].mean())


def _annotations(rows: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "image_id": row.picture,
            "category_id": row.label,
            "segmentation": row.rle,
            "score": row.score,
            "area": float(coco_mask.area(row.rle)),
            "iscrowd": 0,
        }
        for number, row in enumerate(rows, 1)
    ]


def outcomes(truth: Sequence[Found], found: Sequence[Found]) -> list[Outcome]:
    """Return for each object whether it was found once, several times or not.

    An instance with a score of 0.5 or more belongs to the object in which most of it lies, if half of it does. An
    object is found once if one instance belongs to it, with its class and an IoU of 0.5.

    Args:
        truth: the objects of one picture.
        found: the instances of one picture.
    """
    sure = [row for row in found if row.score >= SURE]
    if not sure or not truth:
        return [Outcome.NOT] * len(truth)
    iou, share = (
        np.array(coco_mask.iou([row.rle for row in sure], [row.rle for row in truth], [crowd] * len(truth)))
        for crowd in (0, 1)
    )  # [instances, objects]; of a crowd pycocotools returns the share of the instance
    owner = np.where(share.max(axis=1) >= _MATCH, share.argmax(axis=1), -1)
    return [_outcome(truth[index], [sure[i] for i in of], iou[of, index]) for index, of in _groups(owner, len(truth))]


def _groups(owner: npt.NDArray[np.intp], count: int) -> list[tuple[int, npt.NDArray[np.intp]]]:
    return [(index, np.flatnonzero(owner == index)) for index in range(count)]


def _outcome(thing: Found, instances: Sequence[Found], iou: npt.NDArray[np.float64]) -> Outcome:
    if len(instances) > 1:
        return Outcome.SEVERAL_TIMES
    right = bool(instances) and instances[0].label == thing.label and iou[0] >= _MATCH
    return Outcome.ONCE if right else Outcome.NOT
