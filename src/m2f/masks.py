"""One query's mask, straight from its logits to runs of pixels: area, box, sigmoid sum and RLE.

The dense mask is never made. Only the region that can be positive is evaluated, in strips of whole columns
small enough for the cache, because COCO's runs go down the columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from m2f.geometry import Floats, Ints, Taps, apply_rows, mask_taps, outputs_reading
from m2f.rle import encode_runs

_STRIP_PIXELS = 1 << 16  # float32 strip and its temporaries stay in the second-level cache

_NO_RUNS = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class RunMask:
    """A full-size binary mask as runs of ones in column-major order.

    Attributes:
        starts, ends: int64 [R], half-open runs, ascending, none touching the next.
        height, width: size of the mask in pixels.
        box: x1, y1, x2, y2, half-open; zeros when empty.
        sigmoid_sum: sum of sigmoid(logit) over the mask's pixels.
    """

    starts: Ints
    ends: Ints
    height: int
    width: int
    box: tuple[int, int, int, int]
    sigmoid_sum: float

    @cached_property
    def area(self) -> int:
        """Pixels inside."""
        return int((self.ends - self.starts).sum())

    @property
    def score(self) -> float:
        """Mean sigmoid over the mask's pixels, with mmdetection's epsilon."""
        return self.sigmoid_sum / (self.area + 1e-6)

    def to_rle(self) -> bytes:
        """COCO compressed RLE `counts`."""
        return encode_runs(self.starts, self.ends, self.height * self.width)

    def intersection(self, other: RunMask) -> int:
        """Pixels inside both masks."""
        inside = _pixels_before(other, self.ends) - _pixels_before(other, self.starts)
        return int(inside.sum())

    def iou(self, other: RunMask) -> float:
        """Intersection over union; 0 for two empty masks."""
        if not _boxes_meet(self.box, other.box):
            return 0.0
        shared = self.intersection(other)
        return shared / (self.area + other.area - shared)


class MaskSampler:
    """Samples masks of one image at full size; the two axes' operators are shared by all its queries."""

    def __init__(
        self, *, cells: tuple[int, int], padded: tuple[int, int], valid: tuple[int, int], original: tuple[int, int]
    ) -> None:
        """Prepare the operators. All sizes are (height, width): see `geometry.mask_taps`."""
        self.height, self.width = original
        self._rows, self._columns = (
            mask_taps(cells=c, padded=p, valid=v, original=o)
            for c, p, v, o in zip(cells, padded, valid, original, strict=True)
        )

    def sample(self, logits: Floats) -> RunMask:
        """Threshold one query's logits float32 [h, w] at 0, at the original image's size."""
        window = self._positive_window(logits)
        if window is None:
            return self._mask([], 0.0)
        (row_begin, row_end), (column_begin, column_end) = window
        rows = _narrow(self._rows, row_begin, row_end)
        strip_width = max(1, _STRIP_PIXELS // (row_end - row_begin))
        runs, sigmoid_sum = [], 0.0
        for begin in range(column_begin, column_end, strip_width):
            columns = _narrow(self._columns, begin, min(begin + strip_width, column_end))
            cells = slice(int(columns.source[0, 0]), int(columns.source[-1, -1]) + 1)
            tall = apply_rows(logits[:, cells], rows).T  # [cells, rows]
            strip = apply_rows(np.ascontiguousarray(tall), Taps(columns.source - cells.start, columns.weight))
            inside = strip > 0  # [columns, rows]
            runs.append(_column_runs(inside, begin * self.height + row_begin, self.height))
            sigmoid_sum += float(_sigmoid(strip[inside]).sum(dtype=np.float64))
        return self._mask(runs, sigmoid_sum)

    def _positive_window(self, logits: Floats) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Rows and columns of the image that a positive cell reaches; an output is a mean of its cells."""
        positive = logits > 0
        cell_rows, cell_columns = np.flatnonzero(positive.any(axis=1)), np.flatnonzero(positive.any(axis=0))
        if not len(cell_rows):
            return None
        rows = outputs_reading(self._rows, cell_rows[0], cell_rows[-1])
        columns = outputs_reading(self._columns, cell_columns[0], cell_columns[-1])
        return (rows, columns) if rows[0] < rows[1] and columns[0] < columns[1] else None

    def _mask(self, runs: list[tuple[Ints, Ints]], sigmoid_sum: float) -> RunMask:
        starts = np.concatenate([s for s, _ in runs]) if runs else _NO_RUNS
        ends = np.concatenate([e for _, e in runs]) if runs else _NO_RUNS
        box = _runs_box(starts, ends, self.height)
        apart = starts[1:] != ends[:-1]  # a run that reaches the bottom goes on at the next column's top
        if len(starts):
            starts, ends = starts[np.append(True, apart)], ends[np.append(apart, True)]
        return RunMask(starts=starts, ends=ends, height=self.height, width=self.width, box=box, sigmoid_sum=sigmoid_sum)


def _narrow(taps: Taps, begin: int, end: int) -> Taps:
    return Taps(taps.source[:, begin:end], taps.weight[:, begin:end])


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


def _column_runs(inside: npt.NDArray[np.bool_], origin: int, height: int) -> tuple[Ints, Ints]:
    """Runs of a block [columns, rows] whose first pixel is `origin` in an image `height` rows tall."""
    columns, rows = inside.shape
    fenced = np.zeros((columns, rows + 1), bool)  # a False after each column, so that no run crosses it here
    fenced[:, :rows] = inside
    flat = fenced.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        edges = np.append(0, edges)
    column, row = np.divmod(edges, rows + 1)
    positions = origin + column * height + row
    return positions[0::2], positions[1::2]


def _runs_box(starts: Ints, ends: Ints, height: int) -> tuple[int, int, int, int]:
    if not len(starts):
        return 0, 0, 0, 0
    first_column, last_column = starts[0] // height, starts[-1] // height
    return (
        int(first_column),
        int((starts % height).min()),
        int(last_column) + 1,
        int(((ends - 1) % height).max()) + 1,
    )


def _pixels_before(mask: RunMask, positions: Ints) -> Ints:
    """How many pixels of the mask lie before each position."""
    lengths = np.concatenate([[0], np.cumsum(mask.ends - mask.starts)])
    run = np.searchsorted(mask.starts, positions, side="right")  # runs that start at or before it
    overhang = np.zeros_like(positions)
    begun = run > 0
    overhang[begun] = np.maximum(mask.ends[run[begun] - 1] - positions[begun], 0)
    return lengths[run] - overhang


def _boxes_meet(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])
