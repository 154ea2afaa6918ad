"""Mask probabilities as transformers makes them for its panoptic segmentation.

Reference: `post_process_panoptic_segmentation` of the processors of transformers 5.23. It resizes probabilities, where
mmdetection resizes logits, and never learns where the padding is: the whole of the masks is stretched over the image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from m2f.geometry import Floats, Ints, SizeHW, Taps, bilinear_taps
from m2f.logits import ImageLogits

# By `panoptic_semantics`: the (height, width) that mask logits are resized to first; None: they stay as they are.
GRIDS: dict[str, SizeHW | None] = {"huggingface": (384, 384), "huggingface_maskformer": None}


def weighted_blocks(
    image: ImageLogits, queries: Ints, scores: Floats, *, grid: SizeHW | None, max_values: int
) -> Iterator[tuple[slice, Floats]]:
    """Yield class score x mask probability of some queries at the image's size, in blocks of rows from the top.

    Args:
        image: logits of one image.
        queries: int64 [K], each below Q.
        scores: float32 [K], the class scores of these queries.
        grid: (height, width) that the mask logits are resized to before the sigmoid; None: no such resize.
        max_values: most values of a block; a block has at least one row.

    Yields:
        The rows of the block, and a new array float32 [K, rows, W].
    """
    logits = image.mask_logits[queries].astype(np.float32)
    if grid:
        taps = [bilinear_taps(*sides) for sides in zip(image.geometry.cells, grid, strict=True)]
        logits = _resized(logits, *taps)
    with np.errstate(over="ignore"):
        probabilities = 1 / (1 + np.exp(-logits))
    height, width = image.geometry.original
    rows, columns = (bilinear_taps(*sides) for sides in zip(probabilities.shape[1:], (height, width), strict=True))
    step = max(1, max_values // (width * max(1, len(queries))))
    for begin in range(0, height, step):
        block = slice(begin, min(begin + step, height))
        part = Taps(rows.source[:, block], rows.weight[:, block])
        yield block, np.ascontiguousarray(_resized(probabilities, part, columns) * scores[:, None, None])


def _resized(values: Floats, rows: Taps, columns: Taps) -> Floats:
    """Apply taps along both axes: [K, h, w] -> [K, rows, columns]."""
    down = sum(values[:, source] * weight[:, None] for source, weight in zip(*rows, strict=True))
    across: Floats = sum(down[:, :, source] * weight for source, weight in zip(*columns, strict=True))  # type: ignore[index]
    return across
