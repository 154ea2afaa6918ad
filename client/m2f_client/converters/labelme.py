"""labelme's JSON, as labelme 5 and 6 read it.

A shape of labelme is one polygon without holes, or, since 5.3, a mask: a PNG in a rectangle. Therefore

* an instance without holes becomes a polygon for each piece (pixels that meet at a corner are one piece); several
  pieces share a `group_id`;
* an instance with a hole becomes a mask;
* an instance of a result without masks becomes the rectangle of its box;
* an instance with an empty mask has no shape.

labelme fills a polygon including the pixels on its edge. So the polygons here run through the centres of the outermost
pixels, half a pixel inside those of `polygons`, and `labelme.utils.shapes_to_label` returns each mask exactly.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from m2f_client.converters.result_like import ResultLike

_VERSION = "5.5.0"  # version of the format
_PARENT = 3  # column of OpenCV's tree of outlines; only holes have a parent


def label_file(result: ResultLike, image_path: str, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the content of a labelme file; each shape has the `score` of its instance, which labelme keeps.

    Args:
        result: needs `scores`, `labels`, `size` and masks (`rle`, `packed_masks` or `masks`), or else `boxes`.
        image_path: path of the image, relative to the file's folder. The file does not contain the image itself.
        class_names: the model's class names; None: class numbers.

    Raises:
        OutputNotRequested: one of the needed outputs is missing.
    """
    height, width = result.size
    shapes = []
    for index, name in enumerate(result.names(class_names)):
        score = float(result.scores[index])
        geometries = _of_mask(*result.crop(index), index) if result.has_masks else _of_box(result.boxes[index])
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


def _of_mask(x: int, y: int, mask: npt.NDArray[np.uint8], group: int) -> list[dict[str, Any]]:
    """Return the geometries of a mask whose upper left pixel is (x, y) of the image."""
    outlines, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    if len(outlines) and (tree[0, :, _PARENT] >= 0).any():
        left, top, width, height = cv2.boundingRect(mask)
        corners = [[x + left, y + top], [x + left + width - 1, y + top + height - 1]]  # the first and the last pixel
        picture = _png(mask[top : top + height, left : left + width])
        return [{"shape_type": "mask", "points": corners, "mask": picture}]
    group_id = group if len(outlines) > 1 else None
    return [{"shape_type": "polygon", "points": _polygon(outline), "group_id": group_id} for outline in outlines]


def _polygon(outline: npt.NDArray[Any]) -> list[list[float]]:
    """Return the points of an outline [N, 1, 2] of pixels; at least three, as labelme requires."""
    points: list[list[float]] = (outline[:, 0] + 0.5).tolist()
    return points + [points[-1]] * (3 - len(points))


def _of_box(box: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    x1, y1, x2, y2 = box.tolist()
    return [{"shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}] if x2 > x1 and y2 > y1 else []


def _png(mask: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask * np.uint8(255)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
