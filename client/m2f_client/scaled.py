"""A result in a smaller size: a picture of it is drawn at the size of a screen, not at that of the image."""

from __future__ import annotations

import numpy as np

from m2f.errors import InputError
from m2f.geometry import Ints
from m2f.runs import Runs
from m2f_client.client_errors import ServerError
from m2f_client.result import Result


def scaled(result: Result, size: tuple[int, int]) -> Result:
    """Return the instances as they are in the image scaled to a smaller size. No mask of the image's size is made.

    A pixel of the scaled mask is the pixel of the mask at its centre.

    Args:
        result: needs `scores`, `labels`, `boxes`, `rle` and `size`.
        size: width and height of the scaled image, neither larger than that of the image.

    Raises:
        ServerError: the RLE of the result is invalid.
    """
    height, width = result.size
    if size == (width, height):
        return result
    corners = result.boxes.astype(np.float64).reshape(-1, 2, 2) * (np.array(size) / (width, height))  # [K, 2, 2]
    boxes = np.concatenate([np.floor(corners[:, 0]), np.ceil(corners[:, 1])], axis=1)  # never empty
    rle = np.empty(len(result), np.object_)
    rle[:] = [_scaled_rle(counts, result.size, size[::-1]) for counts in result.rle] if result.has_masks else b""
    return Result(
        {
            "scores": result.scores,
            "labels": result.labels,
            "boxes": boxes.astype(np.float32),
            "rle": rle,
            "size": np.array(size[::-1], np.int32),
        }
    )


def _scaled_rle(counts: bytes, before: tuple[int, int], after: tuple[int, int]) -> bytes:
    try:
        mask = Runs.of_rle(counts, *before)
    except InputError as error:
        raise ServerError(f"a mask from the server cannot be decoded: {error}") from error
    begins, ends = (_first_pixel(edges, before[0], after[0]) for edges in (mask.begins, mask.ends))
    columns, next_columns = (_first_pixel(edges, before[1], after[1]) for edges in (mask.columns, mask.columns + 1))
    shown = (begins < ends) & (columns < next_columns)
    return Runs(columns[shown], begins[shown], ends[shown]).rle(*after)


def _first_pixel(edges: Ints, before: int, after: int) -> Ints:
    """Return for each pixel of a side the first pixel of the scaled side whose centre is in it or beyond it.

    The centre of pixel p is in pixel `(2 p + 1) before // (2 after)`.
    """
    return -((before - 2 * after * edges) // (2 * before))
