"""COCO's JSON: results of one image, and a whole file that pycocotools loads.

The file is a COCO dataset whose annotations are detections:

    {"info":        {"description": ..., "server": ...},
     "images":      [{"id": 1, "file_name": "as given", "width": w, "height": h}],
     "categories":  [{"id": 1, "name": "cat"}],             id = class index + 1
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "score": 0.98, "bbox": [x, y, w, h], "area": 1234,
                      "iscrowd": 0, "segmentation": {"size": [h, w], "counts": "..."}}],
     "errors":      [{"file_name": "as given", "reason": "..."}]}

`COCO(path)` reads it whole; `COCO(ground_truth).loadRes(document["annotations"])` scores it.

Panoptic segmentation has a file of its own beside a PNG an image, in the format of cocodataset/panopticapi:

    {"info", "images":  as above,
     "categories":  [{"id": 0, "name": "cat", "isthing": 1}],    those that were found; id = class index
     "annotations": [{"image_id": 1, "file_name": "a_panoptic.png", "segments_info": [{"id": 1, ...}]}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from m2f_client.result import Result


def class_name(label: int, class_names: Sequence[str] | None) -> str:
    """Return the name of a class index, or the number as text where there is none."""
    return class_names[label] if class_names and 0 <= label < len(class_names) else str(label)


def results(
    result: Result, image_id: int, categories: Sequence[int | Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Return COCO result dicts: image_id, category_id, score, bbox, area and segmentation.

    Args:
        result: needs `scores`, `labels` and `boxes`; `areas`, `rle` and `size` are used if present.
        image_id: the id of the image in the dataset.
        categories: for each class index the category id, or COCO's category dict; None: class index + 1.

    Raises:
        ValueError: the model has more classes than `categories`.
        OutputNotRequested: one of the needed outputs is missing.
    """
    rows = []
    for index, label in enumerate(result.labels.tolist()):
        x1, y1, x2, y2 = result.boxes[index].tolist()
        row = {
            "image_id": image_id,
            "category_id": _category_id(label, categories),
            "score": float(result.scores[index]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
        }
        if "areas" in result.outputs:
            row["area"] = int(result.areas[index])
        if "rle" in result.outputs and result.outputs["rle"][index]:
            row["segmentation"] = {"size": list(result.size), "counts": result.outputs["rle"][index].decode("ascii")}
        rows.append(row)
    return rows


def _category_id(label: int, categories: Sequence[int | Mapping[str, Any]] | None) -> int:
    if categories is None:
        return label + 1
    if label >= len(categories):
        raise ValueError(f"class index {label} has no category: categories has {len(categories)} entries")
    category = categories[label]
    return category if isinstance(category, int) else int(category["id"])


class Document:
    """A COCO file that grows image by image."""

    def __init__(self, class_names: Sequence[str] | None, *, server: str) -> None:
        self._class_names = class_names
        self._info = {"description": "instances found by m2f", "server": server}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._errors: list[dict[str, str]] = []

    def add(self, file_name: str, result: Result) -> int:
        """Add an image and its instances; return the image's id."""
        image_id = len(self._images) + 1
        height, width = result.size
        self._images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for row in results(result, image_id):
            self._annotations.append({"id": len(self._annotations) + 1, **row, "iscrowd": 0})
        return image_id

    def add_error(self, file_name: str, reason: str) -> None:
        """Add an image that did not work."""
        self._errors.append({"file_name": file_name, "reason": reason})

    def to_dict(self) -> dict[str, Any]:
        """Return the document; every category that an annotation uses is among its categories."""
        count = max([len(self._class_names or ()), *(row["category_id"] for row in self._annotations)])
        return {
            "info": self._info,
            "images": self._images,
            "categories": [{"id": i + 1, "name": class_name(i, self._class_names)} for i in range(count)],
            "annotations": self._annotations,
            "errors": self._errors,
        }


def panoptic_pixels(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Return the pixels of a panoptic PNG, RGB uint8 [H, W, 3]: id = R + 256 G + 256^2 B (panopticapi's `id2rgb`)."""
    return (ids[..., None] >> (0, 8, 16)).astype(np.uint8)


def panoptic(
    result: Result, image_id: int, file_name: str, categories: Sequence[int | Mapping[str, Any]] | None = None
) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """Return a COCO panoptic annotation (image_id, file_name, segments_info) and the pixels of its PNG.

    Args:
        result: needs `panoptic` and `segments`.
        image_id: the id of the image in the dataset.
        file_name: the name under which the PNG will be saved.
        categories: for each class index the category id, or COCO's category dict; None: the class index.

    Returns:
        The annotation, and RGB uint8 [H, W, 3].

    Raises:
        ValueError: the model has more classes than `categories`.
        OutputNotRequested: one of the needed outputs is missing.
    """
    segments = result.segments
    if categories is not None:
        segments = [{**s, "category_id": _category_id(s["category_id"], categories)} for s in segments]
    annotation = {"image_id": image_id, "file_name": file_name, "segments_info": segments}
    return annotation, panoptic_pixels(result.panoptic)


class PanopticDocument:
    """A COCO panoptic file that grows image by image."""

    def __init__(self, class_names: Sequence[str] | None, *, server: str) -> None:
        self._class_names = class_names
        self._info = {"description": "segments found by m2f", "server": server}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: dict[int, dict[str, Any]] = {}

    def add(self, image_id: int, file_name: str, png: str, result: Result) -> None:
        """Add an image whose panoptic map is in the file `png`."""
        height, width = result.panoptic.shape
        self._images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        self._annotations.append({"image_id": image_id, "file_name": png, "segments_info": result.segments})
        for segment in result.segments:
            label = segment["category_id"]
            name = class_name(label, self._class_names)
            self._categories[label] = {"id": label, "name": name, "isthing": segment["isthing"]}

    def to_dict(self) -> dict[str, Any]:
        """Return the document."""
        return {
            "info": self._info,
            "images": self._images,
            "categories": [self._categories[label] for label in sorted(self._categories)],
            "annotations": self._annotations,
        }
