"""The masks of annotation files: checked polygons and RLE, as compressed RLE.

The C++ code that draws polygons and reads RLE checks nothing: a coordinate of 1e9 takes gigabytes. So everything is
checked here first. One object takes at most 250 MB while it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask as coco_mask

from m2f.errors import InputError, shown
from m2f.limits import MAX_SIDE
from m2f.parameters import is_int
from m2f.rle import decode_edges
from m2f_client.evaluation.fields import Row

MAX_COORDINATE = 2 * MAX_SIDE
"""Largest coordinate of a polygon, and the smallest with a minus sign. What is outside the image is cut off."""

MAX_OUTLINE = 1 << 22
"""Largest length of all outlines of one object, in pixels: 168 MB while they are drawn."""

MAX_COUNTS = 1 << 22
"""Largest number of characters, or of lengths, in the RLE of one object: 60 bytes for each while they are read."""

_POLYGONS = "a list of polygons [x1, y1, x2, y2, x3, y3, ...], or RLE with 'size' and 'counts'"
_POLYGON = "6 or more numbers x1, y1, x2, y2, x3, y3, ..., an even count of them"


def to_rle(annotation: Row, size: tuple[int, int]) -> dict[str, Any]:
    """Return the `segmentation` of an annotation as compressed RLE, COCO's dict of `size` and `counts`.

    Args:
        annotation: the annotation.
        size: height and width of its image.

    Raises:
        InvalidDataset: the segmentation is absent, neither polygons nor RLE, or larger than is allowed.
    """
    value = annotation.values.get("segmentation")
    if not value:
        raise annotation.invalid("segmentation", f"{_POLYGONS}; mask AP needs one for every object")
    if isinstance(value, dict):
        checked: Any = checked_rle(annotation.part("segmentation"), size)
    elif isinstance(value, list):
        checked = _polygons(annotation, value)
    else:
        raise annotation.invalid("segmentation", _POLYGONS)
    height, width = size
    rle: dict[str, Any] = coco_mask.segmToRle(checked, width, height)
    return rle


def checked_rle(segmentation: Row, size: tuple[int, int], *, compressed: bool = False) -> dict[str, Any]:
    """Return an RLE, COCO's dict of `size` and `counts`, that fits its image.

    Args:
        segmentation: the RLE.
        size: height and width of its image.
        compressed: refuse `counts` as a list of whole numbers.

    Raises:
        InvalidDataset: size or counts do not fit.
    """
    height, width = size
    if segmentation.values.get("size") != [height, width]:
        raise segmentation.invalid("size", f"[{height}, {width}], the height and width of its image")
    counts = segmentation.values.get("counts")
    if isinstance(counts, list | str) and len(counts) > MAX_COUNTS:
        raise segmentation.error(f".counts has the length {len(counts)}; allowed are {MAX_COUNTS}")
    if isinstance(counts, list) and not compressed:
        fits = all(is_int(count) and count >= 0 for count in counts) and sum(counts) == height * width
    else:
        fits = isinstance(counts, str) and is_compressed_rle(counts, size)
    if not fits:
        listed = "" if compressed else " or a list of lengths"
        raise segmentation.invalid("counts", f"the RLE of {height} x {width} pixels, compressed text{listed}")
    return {"size": [height, width], "counts": counts}


def is_compressed_rle(counts: str, size: tuple[int, int]) -> bool:
    """Return whether a text is the compressed RLE of a mask of this size."""
    try:
        decode_edges(counts.encode("ascii"), *size)
    except (InputError, UnicodeEncodeError):
        return False
    return True


def _polygons(annotation: Row, polygons: Sequence[object]) -> list[list[float]]:
    """Return polygons that can be drawn."""
    points, outline = [], 0.0
    for index, polygon in enumerate(polygons):
        flat = _numbers(polygon)
        if flat is None or len(flat) < 6 or len(flat) % 2:
            raise annotation.error(f".segmentation[{index}] is {shown(polygon)}; allowed: {_POLYGON}")
        too_large = ~(np.abs(flat) <= MAX_COORDINATE)  # NaN, too
        if too_large.any():
            wrong, allowed = flat[too_large][0], f"-{MAX_COORDINATE} to {MAX_COORDINATE}"
            raise annotation.error(f".segmentation[{index}] has the coordinate {wrong:g}; allowed: {allowed}")
        corners = flat.reshape(-1, 2)
        outline += float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()) + len(corners)
        if outline > MAX_OUTLINE:
            raise annotation.error(f".segmentation has outlines of {outline:.0f} pixels; allowed are {MAX_OUTLINE}")
        points.append(flat.tolist())
    return points


def _numbers(polygon: object) -> npt.NDArray[np.float64] | None:
    """Return a list of numbers as an array, float64 [N]; None for something else."""
    if not isinstance(polygon, list) or not all(type(number) in (int, float) for number in polygon):
        return None
    try:
        return np.array(polygon, np.float64)
    except OverflowError:  # a whole number of more than 308 digits
        return None
