"""Average precision as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from m2f_client.evaluation.dataset import Dataset

_ALL = slice(None)
_SUMMARY: dict[str, tuple[str, slice | int, int, int]] = {
    # COCO's summary: (array, IoUs, range of areas: all, small, medium, large; instances: 1, 10, 100)
    "AP": ("precision", _ALL, 0, 2),
    "AP50": ("precision", 0, 0, 2),
    "AP75": ("precision", 5, 0, 2),
    "APs": ("precision", _ALL, 1, 2),
    "APm": ("precision", _ALL, 2, 2),
    "APl": ("precision", _ALL, 3, 2),
    "AR1": ("recall", _ALL, 0, 0),
    "AR10": ("recall", _ALL, 0, 1),
    "AR100": ("recall", _ALL, 0, 2),
    "ARs": ("recall", _ALL, 1, 2),
    "ARm": ("recall", _ALL, 2, 2),
    "ARl": ("recall", _ALL, 3, 2),
}

FIGURES = tuple(_SUMMARY)
"""The figures of COCO's summary, in its order."""

COCO_MOST = 100
"""Instances of an image that COCO counts."""

_CATEGORY = 1
_SILENT = {"print_function": lambda *_: None}


@dataclass(frozen=True)
class ClassPrecision:
    """One category.

    Attributes:
        name: name of the category.
        objects: number of objects, without crowds.
        ap: AP, the mean over IoU 0.5 to 0.95; None without objects.
        ap50: AP at IoU 0.5; None without objects.
        recall: share of the objects that the best instances of each image contain, mean over IoU 0.5 to 0.95; None
            without objects.
        curve: precision at recall 0, 0.01, ... 1 and IoU 0.5, float [101]; None without objects.
    """

    name: str
    objects: int
    ap: float | None
    ap50: float | None
    recall: float | None
    curve: npt.NDArray[np.float64] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON has them, without the curve."""
        return {"name": self.name, "objects": self.objects, "AP": self.ap, "AP50": self.ap50, "recall": self.recall}


@dataclass(frozen=True)
class Precision:
    """Average precision over a data set.

    Attributes:
        figures: 0 to 1, by name in `FIGURES`; None if no object has that size.
        classes: each category, in the order of ids.
    """

    figures: dict[str, float | None]
    classes: tuple[ClassPrecision, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON has them."""
        return {**self.figures, "per_class": [one.to_dict() for one in self.classes]}


def average_precision(
    dataset: Dataset,
    rows: Iterable[dict[str, Any]],
    image_ids: Iterable[int],
    kind: Literal["segm", "bbox"],
    *,
    most: int = COCO_MOST,
) -> Precision:
    """Score COCO results as COCOeval does with its default parameters: IoU 0.5 to 0.95.

    Each category is scored by itself, because COCOeval takes 1 kB of memory for each pair of image and category.

    Args:
        dataset: the data set, from `read_instances`.
        rows: COCO results.
        image_ids: ids of the images to score.
        kind: "segm" for masks, "bbox" for boxes.
        most: the best instances of a category in an image that count.
    """
    scored = set(image_ids)
    truth, found = _by_category(dataset.annotations, scored), _by_category(rows, scored)
    sizes = {image.id: image.size for image in dataset.images}
    objects = dataset.objects(scored)
    classes, summaries = [], []
    for category in dataset.categories:
        name, number = category["name"], category["id"]
        if not objects[number]:
            classes.append(ClassPrecision(name, 0, None, None, None, None))
            continue
        judged = _judge(truth[number], found[number], sizes, kind, most)
        one = {figure: _mean(judged, *where) for figure, where in _SUMMARY.items()}
        curve = judged["precision"][0, :, 0, 0, -1].copy()  # not the whole array
        classes.append(ClassPrecision(name, objects[number], one["AP"], one["AP50"], one["AR100"], curve))
        summaries.append(one)
    figures = {figure: _mean_of(one[figure] for one in summaries) for figure in FIGURES}
    return Precision(figures, tuple(classes))


def _by_category(rows: Iterable[dict[str, Any]], image_ids: set[int]) -> defaultdict[int, list[dict[str, Any]]]:
    """Return the rows of some images by category id."""
    sorted_out = defaultdict(list)
    for row in rows:
        if row["image_id"] in image_ids:
            sorted_out[row["category_id"]].append(row)
    return sorted_out


def _judge(
    truth: Sequence[dict[str, Any]],
    found: Sequence[dict[str, Any]],
    sizes: Mapping[int, tuple[int, int]],
    kind: Literal["segm", "bbox"],
    most: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """Return COCOeval's precision [IoU, recall, 1, area, instances] and recall [IoU, 1, area, instances] of a category.

    Images are numbered anew, because COCOeval takes only ids from 0 to 2^53. Objects are numbered from 1, because
    COCOeval takes an object with the id 0 for none.
    """
    numbers = {image_id: number for number, image_id in enumerate(sorted({r["image_id"] for r in (*truth, *found)}))}
    images = [{"id": number, "height": sizes[i][0], "width": sizes[i][1]} for i, number in numbers.items()]
    objects = [{**row, "id": number, **_numbered(row, numbers)} for number, row in enumerate(truth, start=1)]
    # of a row with both, COCO would take the area of the box for the mask's
    geometry = "segmentation" if kind == "segm" else "bbox"
    rows = [{"score": row["score"], geometry: row[geometry], **_numbered(row, numbers)} for row in found]
    coco = COCO({"images": images, "categories": [{"id": _CATEGORY}], "annotations": objects})
    judge = COCOeval_faster(coco, coco.loadRes(rows), kind, **_SILENT)
    judge.params.maxDets = [1, 10, most]
    judge.evaluate()
    judge.accumulate()
    return judge.eval  # type: ignore[no-any-return]


def _numbered(row: dict[str, Any], numbers: Mapping[int, int]) -> dict[str, int]:
    return {"image_id": numbers[row["image_id"]], "category_id": _CATEGORY}


def _mean(
    judged: dict[str, npt.NDArray[np.float64]], array: str, ious: slice | int, area: int, instances: int
) -> float | None:
    """Return a figure of a category; None if no object has that size, for which COCOeval writes -1."""
    values = judged[array][ious, ..., area, instances]
    return float(values.mean()) if values.min() >= 0 else None


def _mean_of(figures: Iterable[float | None]) -> float | None:
    present = [figure for figure in figures if figure is not None]
    return float(np.mean(present)) if present else None
