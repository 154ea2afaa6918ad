"""COCO's JSON for one image: result dicts of its instances, and the annotation of its panoptic segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.errors import M2FError
from m2f_client.converters.result_like import ResultLike

CocoDict = dict[str, Any]
"""A result, annotation or category as COCO's JSON files have it."""

Categories = Sequence[int | Mapping[str, Any]]
"""For each class index the category id, or COCO's category dict."""


def class_name(label: int, class_names: Sequence[str] | None) -> str:
    """Return the name of a class index; the number as text for a class without a name."""
    return class_names[label] if class_names and 0 <= label < len(class_names) else str(label)


def results(result: ResultLike, image_id: int, categories: Categories | None = None) -> list[CocoDict]:
    """Return COCO result dicts: image_id, category_id, score, bbox, area and segmentation.

    Args:
        result: needs `scores`, `labels` and `boxes`; `areas`, `rle` and `size` are used if present.
        image_id: id of the image in the data set.
        categories: for each class index the category id, or COCO's category dict; None: category id = class index + 1.

    Raises:
        ValueError: the model has more classes than `categories`.
        OutputNotRequested: one of the needed outputs is missing.
        M2FError: the image has 2^32 pixels or more, whose masks pycocotools reads as other masks.
    """
    if "size" in result.outputs and too_large(*result.size):
        raise M2FError(
            f"an image of {result.size[1]} x {result.size[0]} pixels cannot be COCO results: pycocotools counts pixels "
            "in 32 bits and would read other masks. Use Result.rle, runs, crop, polygons or to_geojson"
        )
    return rows(result, image_id, categories)


def too_large(height: int, width: int) -> bool:
    """Say whether an image has more pixels than pycocotools can count."""
    return height * width >= 1 << 32


def rows(result: ResultLike, image_id: int, categories: Categories | None = None) -> list[CocoDict]:
    """Return `results` of an image of any size: m2f itself reads the RLE of more than 2^32 pixels."""
    found = []
    for index, label in enumerate(result.labels.tolist()):
        x1, y1, x2, y2 = result.boxes[index].tolist()
        row = {
            "image_id": image_id,
            "category_id": _category_id(label, categories),
            "score": float(result.scores[index]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
        }
        if "areas" in result.outputs:
            row["area"] = int(result.outputs["areas"][index])
        if "rle" in result.outputs and result.outputs["rle"][index]:
            row["segmentation"] = {"size": list(result.size), "counts": result.outputs["rle"][index].decode("ascii")}
        found.append(row)
    return found


def _category_id(label: int, categories: Categories | None) -> int:
    if categories is None:
        return label + 1
    if label >= len(categories):
        raise ValueError(f"class index {label} has no category: categories has {len(categories)} entries")
    category = categories[label]
    return category if isinstance(category, int) else int(category["id"])


def panoptic_pixels(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Return the pixels of a panoptic PNG, RGB uint8 [H, W, 3]: id = R + 256 G + 256^2 B (panopticapi's `id2rgb`)."""
    return (ids[..., None] >> (0, 8, 16)).astype(np.uint8)


def panoptic(
    segments: list[CocoDict],
    ids: npt.NDArray[np.int32],
    image_id: int,
    file_name: str,
    categories: Categories | None = None,
) -> tuple[CocoDict, npt.NDArray[np.uint8]]:
    """Return a COCO panoptic annotation (image_id, file_name, segments_info) and the pixels of its PNG.

    Args:
        segments: `Result.segments`.
        ids: `Result.panoptic`, int32 [H, W].
        image_id: id of the image in the data set.
        file_name: name of the PNG file.
        categories: for each class index the category id, or COCO's category dict; None: category id = class index.

    Returns:
        The annotation, and RGB uint8 [H, W, 3].

    Raises:
        ValueError: the model has more classes than `categories`.
    """
    if categories is not None:
        segments = [{**s, "category_id": _category_id(s["category_id"], categories)} for s in segments]
    annotation = {"image_id": image_id, "file_name": file_name, "segments_info": segments}
    return annotation, panoptic_pixels(ids)
