"""Maps with one number a pixel, segment or class: full-size probabilities in blocks of rows, limits, and batches.

An original image of 4000 x 4000 with 100 queries has 6.4 GB of them; a block of its rows has some MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from m2f import native
from m2f.errors import InputError
from m2f.geometry import Floats, Ints, Taps, apply_rows, mask_taps
from m2f.limits import MAX_MAP_BYTES

LabelMap = npt.NDArray[np.int32]

_MAX_ROWS = 256  # of a block: the operator of its rows is a dense matrix
_SURE = 1e4  # a logit whose sigmoid is 0 or 1, and which a weight of 0 still makes 0


class MaskProbabilities:
    """sigmoid(mask logit) of some queries at the image's size, a block of rows at a time."""

    def __init__(
        self,
        mask_logits: Floats,
        queries: Ints,
        *,
        padded: tuple[int, int],
        valid: tuple[int, int],
        original: tuple[int, int],
        kernel: str | None = None,
    ) -> None:
        """Prepare both axes' operators: see `geometry.mask_taps`.

        Args:
            mask_logits: float32 [Q, h, w]. NaN counts as far outside.
            queries: int64 [N], each below Q.
            padded: (height, width) of the network input.
            valid: of the image in it.
            original: of the original image.
            kernel: one of `native.kernels`; None: the best.
        """
        kernel = native.resolve(kernel)
        self._height, self._width = original
        self._num_queries = len(queries)
        axes = [
            {"cells": c, "padded": p, "valid": v, "original": o}
            for c, p, v, o in zip(mask_logits.shape[1:], padded, valid, original, strict=True)
        ]
        mask_logits = np.ascontiguousarray(mask_logits, np.float32)
        self._block: Callable[[slice], Floats]
        if kernel == native.NUMPY:
            rows, columns = (mask_taps(**axis) for axis in axes)
            self._block = partial(_block, mask_logits, queries, rows=rows, columns=columns)
        else:
            queries = np.ascontiguousarray(queries, np.int64)
            to_rows, to_columns = (native.mask_axis(**axis) for axis in axes)
            self._block = partial(
                native.probabilities, mask_logits, queries, kernel=kernel, rows=to_rows, columns=to_columns
            )

    def blocks(self, max_values: int) -> Iterator[tuple[slice, Floats]]:
        """Yield blocks of whole rows from the top.

        Args:
            max_values: of a block, if it has more than one row.

        Yields:
            Which rows of the image, and their probabilities, float32 [N, rows, W], for the caller to keep or change.
        """
        step = min(max(1, max_values // (self._width * max(1, self._num_queries))), _MAX_ROWS)
        for begin in range(0, self._height, step):
            rows = slice(begin, min(begin + step, self._height))
            yield rows, self._block(rows)


def _block(mask_logits: Floats, queries: Ints, block: slice, *, rows: Taps, columns: Taps) -> Floats:
    """`native.probabilities` in numpy."""
    source, weight = rows.source[:, block], rows.weight[:, block]
    first, last = int(source[0, 0]), int(source[-1, -1])
    band = _finite(mask_logits[queries, first : last + 1])  # [N, cells, w]
    columns_first = np.ascontiguousarray(band.reshape(-1, band.shape[2]).T)
    wide = np.ascontiguousarray(apply_rows(columns_first, columns).T)  # [N * cells, W]
    return sigmoid(_matrix(Taps(source - first, weight)) @ wide.reshape(*band.shape[:2], -1))


def _matrix(taps: Taps) -> Floats:
    """The same operator as a dense matrix, float32 [out, in]."""
    matrix = np.zeros((taps.source.shape[1], int(taps.source[-1, -1]) + 1), np.float32)
    outputs = np.arange(len(matrix))
    for source, weight in zip(taps.source, taps.weight, strict=True):
        matrix[outputs, source] += weight
    return matrix


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-logits)), in place."""
    np.negative(logits, out=logits)
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the sigmoid 0
        np.exp(logits, out=logits)
    logits += np.float32(1)
    return np.reciprocal(logits, out=logits)


def check_size(name: str, ori_shapes: Sequence[Sequence[int]], *, max_bytes: int = MAX_MAP_BYTES) -> None:
    """Refuse label maps of one response that would take more than `max_bytes`.

    Args:
        name: of the output.
        ori_shapes: height and width of each image of the request.
        max_bytes: of all maps together.

    Raises:
        InputError: they would.
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
    """Stack N label maps int32 [H, W] of any sizes to [N, H, W], the largest H and W, with `fill` beyond each."""
    if len(maps) == 1:
        return maps[0][None]  # no copy of what may be large
    height, width = np.max([each.shape for each in maps], axis=0)
    stacked = np.full((len(maps), height, width), fill, np.int32)
    for image, each in zip(stacked, maps, strict=True):
        image[: each.shape[0], : each.shape[1]] = each
    return stacked


def _finite(logits: Floats) -> Floats:
    """Infinities as logits that are sure; NaN is no pixel of its query."""
    return np.nan_to_num(logits, nan=-_SURE, posinf=_SURE, neginf=-_SURE)
