"""labelme's JSON, as labelme 5 and 6 read it.

A shape of it is one polygon without holes, or, from 5.3 on, a mask: a PNG in a rectangle. So

* an instance without holes becomes polygons, one for each piece, which share a `group_id` if there are several;
* an instance with a hole becomes one mask, the only shape that can hold it;
* where there are no masks, an instance becomes the rectangle of its box;
* an instance with an empty mask has no shape.

Points are pixel edges, as labelme draws them. Its `shape_to_mask` fills with Pillow, which adds the pixels to the right
of a polygon's edge and below it; masks are exact.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from m2f_client.polygons import trace

if TYPE_CHECKING:
    from m2f_client.result import Result

_VERSION = "5.5.0"  # of the format


def label_file(result: Result, image_path: str, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the content of a labelme file; each shape has the `score` of its instance, which labelme keeps.

    Args:
        result: needs `scores`, `labels`, `size` and masks (`rle`, `packed_masks` or `masks`); `boxes` where
            there are no masks.
        image_path: of the image, relative to the file's folder. The image itself is not put into the file.
        class_names: the model's names; None: class numbers.

    Raises:
        OutputNotRequested: one of the needed outputs is missing.
    """
    height, width = result.size
    shapes = []
    for index, name in enumerate(result.names(class_names)):
        score = float(result.scores[index])
        geometries = _of_mask(result.mask(index), index) if result.has_masks else _of_box(result.boxes[index])
        shapes += [
            {"label": name, "group_id": None, "description": "", "flags": {}, "mask": None, **geometry, "score": score}
            for geometry in geometries
        ]
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _of_mask(mask: npt.NDArray[np.uint8], group: int) -> list[dict[str, Any]]:
    polygons = trace(mask)
    if any(polygon.holes for polygon in polygons):
        left, top, width, height = cv2.boundingRect(mask)
        corners = [[left, top], [left + width - 1, top + height - 1]]  # of labelme's masks the last pixel, not the edge
        picture = _png(mask[top : top + height, left : left + width])
        return [{"shape_type": "mask", "points": corners, "mask": picture}]
    group_id = group if len(polygons) > 1 else None
    return [
        {"shape_type": "polygon", "points": polygon.exterior.tolist(), "group_id": group_id} for polygon in polygons
    ]


def _of_box(box: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    x1, y1, x2, y2 = box.tolist()
    return [{"shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}] if x2 > x1 and y2 > y1 else []


def _png(mask: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask * np.uint8(255)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
