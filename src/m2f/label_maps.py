"""Maps with one number for each pixel, segment or class: probabilities in blocks of rows, size limits, and batches.

For an original image of 4000 x 4000 and 100 queries the probabilities take 6.4 GB; a block of rows takes some MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError
from m2f.geometry import Floats, Ints
from m2f.half import of_queries
from m2f.kernels import Kernel
from m2f.limits import MAX_MAP_BYTES
from m2f.logits import ImageLogits

LabelMap = npt.NDArray[np.int32]

_MAX_ROWS = 256  # of a block: the numpy kernel's operator along the rows is a dense matrix


def probability_blocks(
    image: ImageLogits, queries: Ints, kernel: Kernel, *, max_values: int
) -> Iterator[tuple[slice, Floats]]:
    """Yield sigmoid(mask logit) of some queries at the image's size, in blocks of whole rows from the top.

    Args:
        image: logits of one image; NaN in `mask_logits` counts as far outside.
        queries: int64 [N], each below Q.
        kernel: computes the blocks.
        max_values: most values of a block; a block has at least one row.

    Yields:
        The rows of the block, and a new array of its probabilities, float32 [N, rows, W].
    """
    operator = kernel.operator(image.geometry)
    mask_logits, places = of_queries(image.mask_logits, queries, kernel)
    height, width = image.geometry.original
    step = min(max(1, max_values // (width * max(1, len(places)))), _MAX_ROWS)
    for begin in range(0, height, step):
        rows = slice(begin, min(begin + step, height))
        yield rows, operator.probabilities(mask_logits, places, rows)


def check_size(name: str, ori_shapes: Sequence[Sequence[int]], *, max_bytes: int = MAX_MAP_BYTES) -> None:
    """Refuse label maps of one response that would take more than `max_bytes`.

    Args:
        name: name of the output.
        ori_shapes: (height, width) of each image of the request.
        max_bytes: most bytes of all maps together.

    Raises:
        InputError: the maps would take more than `max_bytes`.
    """
    height, width = (max(sides) for sides in zip(*ori_shapes, strict=True))
    images, pixel = len(ori_shapes), np.dtype(np.int32).itemsize
    if (num_bytes := images * height * width * pixel) > max_bytes:
        raise InputError(
            f"'{name}' would take {num_bytes} bytes ({images} x {height} x {width} x {pixel}); allowed are "
            f"{max_bytes}: ask for 'rle' instead, or for fewer images",
            kind="output_too_large",
        )


def stack_maps(maps: Sequence[LabelMap], fill: int) -> LabelMap:
    """Stack N label maps int32 [H, W] of any sizes to [N, H, W], the largest H and W, with `fill` beyond each map."""
    if len(maps) == 1:
        return maps[0][None]  # a map may be large: do not copy it
    height, width = np.max([each.shape for each in maps], axis=0)
    stacked = np.full((len(maps), height, width), fill, np.int32)
    for image, each in zip(stacked, maps, strict=True):
        image[: each.shape[0], : each.shape[1]] = each
    return stacked
