"""Average precision as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from m2f_client.evaluation.dataset import Dataset

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The figures of COCO's summary, in its order."""

_SILENT = {"print_function": lambda *_: None}


@dataclass(frozen=True)
class ClassPrecision:
    """One category.

    Attributes:
        name: name of the category.
        objects: number of objects, without crowds.
        ap: AP, the mean over IoU 0.5 to 0.95; None without objects.
        ap50: AP at IoU 0.5; None without objects.
        recall: share of the objects that the best 100 instances of each image contain, mean over IoU 0.5 to 0.95; None
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
    dataset: Dataset, rows: Iterable[dict[str, Any]], image_ids: Sequence[int], kind: Literal["segm", "bbox"]
) -> Precision:
    """Score COCO results as COCOeval does with its default parameters: 100 instances an image, IoU 0.5 to 0.95.

    Args:
        dataset: the data set, from `read_instances`.
        rows: COCO results.
        image_ids: ids of the images to score.
        kind: "segm" for masks, "bbox" for boxes.
    """
    images = [{"id": image.id, "height": image.size[0], "width": image.size[1]} for image in dataset.images]
    truth = COCO(
        {"images": images, "categories": list(dataset.categories), "annotations": [{**a} for a in dataset.annotations]}
    )
    # of a row with both, COCO would take the area of the box for the mask's
    found = truth.loadRes([_only(row, "segmentation" if kind == "segm" else "bbox") for row in rows])
    judge = COCOeval_faster(truth, found, kind, **_SILENT)
    judge.params.imgIds = list(image_ids)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    figures = {name: _figure(value) for name, value in zip(FIGURES, judge.stats, strict=True)}
    objects = dataset.objects(set(image_ids))
    precision = judge.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]: all sizes, 100 instances
    recall = judge.eval["recall"][:, :, 0, -1]  # [IoU, class]
    classes = [
        _of_class(category["name"], objects[category["id"]], precision[:, :, index], recall[:, index])
        for index, category in enumerate(dataset.categories)
    ]
    return Precision(figures, tuple(classes))


def _only(row: dict[str, Any], geometry: str) -> dict[str, Any]:
    return {name: row[name] for name in ("image_id", "category_id", "score", geometry)}


def _of_class(
    name: str, objects: int, precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]
) -> ClassPrecision:
    if not objects:
        return ClassPrecision(name, 0, None, None, None, None)
    return ClassPrecision(
        name, objects, float(precision.mean()), float(precision[0].mean()), float(recall.mean()), precision[0]
    )


def _figure(value: float) -> float | None:
    return None if value == -1 else float(value)  # COCO writes -1 for a figure without objects
