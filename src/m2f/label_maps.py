"""Maps with one number a pixel, segment or class: full-size logits in blocks of rows, limits, and batches.

An original image of 4000 x 4000 with 100 queries has 6.4 GB of full-size logits; a block of its rows has some MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2f.contract import MAX_MASK_BYTES, InputError
from m2f.geometry import Floats, Taps, apply_rows, mask_taps

LabelMap = npt.NDArray[np.int32]

_MAX_ROWS = 256  # of a block: the operator of its rows is a dense matrix
_SURE = 1e4  # a logit whose sigmoid is 0 or 1, and which a weight of 0 still makes 0


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of every query's full-size logits: query q's are `weights @ cells[q]`, float32 [rows, W].

    Attributes:
        rows: which rows of the original image.
        cells: float32 [N, cells, W], the rows of mask cells that these read, already at the image's width.
        weights: float32 [rows, cells].
    """

    rows: slice
    cells: Floats
    weights: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width."""
        return self.weights.shape[0], self.cells.shape[2]


class FullSizeLogits:
    """The mask logits of one image at its original size, a block of rows at a time."""

    def __init__(
        self,
        mask_logits: Floats,
        *,
        padded: tuple[int, int],
        valid: tuple[int, int],
        original: tuple[int, int],
    ) -> None:
        """Prepare the operators for logits float32 [N, h, w]. Sizes are (height, width): `geometry.mask_taps`."""
        self._mask_logits = mask_logits
        self._height, self._width = original
        self._rows, self._columns = (
            mask_taps(cells=c, padded=p, valid=v, original=o)
            for c, p, v, o in zip(mask_logits.shape[1:], padded, valid, original, strict=True)
        )

    def blocks(self, max_pixels: int) -> Iterator[Block]:
        """Yield blocks of whole rows from the top, of at most `max_pixels` pixels, or one row."""
        step = min(max(1, max_pixels // self._width), _MAX_ROWS)
        for begin in range(0, self._height, step):
            rows = slice(begin, min(begin + step, self._height))
            source, weight = self._rows.source[:, rows], self._rows.weight[:, rows]
            first, last = int(source[0, 0]), int(source[-1, -1])
            band = _finite(self._mask_logits[:, first : last + 1])
            yield Block(rows=rows, cells=self._widened(band), weights=_matrix(Taps(source - first, weight)))

    def _widened(self, band: Floats) -> Floats:
        """[N, cells, w] -> [N, cells, W]."""
        queries, cells, width = band.shape
        columns_first = np.ascontiguousarray(band.reshape(queries * cells, width).T)
        wide = apply_rows(columns_first, self._columns)  # [W, N * cells]
        return np.ascontiguousarray(wide.T).reshape(queries, cells, self._width)


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


def check_size(name: str, ori_shapes: Sequence[tuple[int, int]]) -> None:
    """Refuse label maps of one response that would take more than `MAX_MASK_BYTES`.

    Args:
        name: of the output.
        ori_shapes: height and width of each image of the request.

    Raises:
        InputError: they would.
    """
    height, width = (max(sides) for sides in zip(*ori_shapes, strict=True))
    images, pixel = len(ori_shapes), np.dtype(np.int32).itemsize
    if (num_bytes := images * height * width * pixel) > MAX_MASK_BYTES:
        raise InputError(
            f"'{name}' would take {num_bytes} bytes ({images} x {height} x {width} x {pixel}); allowed are "
            f"{MAX_MASK_BYTES}: ask for 'rle' instead, or for fewer images"
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
