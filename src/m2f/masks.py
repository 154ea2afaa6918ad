"""Queries' masks, straight from their logits to runs of pixels: area, box, sigmoid sum and RLE.

The dense mask is never made. Only the region that can be positive is evaluated, in strips of whole columns
small enough for the cache, because COCO's runs go down the columns. What is here is numpy; `kernel/masks.c` does the
same, faster, and the same masks come out bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt

from m2f import native
from m2f.errors import InputError
from m2f.geometry import Floats, Ints, Taps, apply_rows, mask_taps, outputs_reading
from m2f.interpolate import Stages, doubtful, pixels, rounding
from m2f.limits import MAX_DOUBTS, MAX_EDGES
from m2f.native import Edges, Records
from m2f.rle import encode_edges

_STRIP_PIXELS = 1 << 16  # float32 strip and its temporaries stay in the second-level cache


_Sample = Callable[[Floats, Ints, native.Budget], tuple[Records, Edges]]


@dataclass(frozen=True, kw_only=True)
class Masks:
    """N full-size binary masks of one image.

    Attributes:
        areas: int64 [N], pixels inside.
        boxes: int32 [N, 4], x1, y1, x2, y2, half-open; zeros when empty.
        scores: float64 [N], mean sigmoid(logit) over the mask's pixels, with mmdetection's epsilon. Finite, also where
            a pixel outside makes mmdetection's NaN: that is neither sorted nor served.
        height, width: of the image.
        kernel: what made them, and encodes and compares them.
    """

    areas: Ints
    boxes: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float64]
    height: int
    width: int
    kernel: str
    _edges: Edges
    _offsets: Ints

    def __len__(self) -> int:
        return len(self.areas)

    @property
    def num_edges(self) -> Ints:
        """How many edges each mask has, int64 [N]."""
        return np.diff(self._offsets)

    def edges(self, index: int) -> Edges:
        """Where the runs of ones of one mask start and end, in turn, down the columns: uint32 [2 R], ascending."""
        return self._edges[self._offsets[index] : self._offsets[index + 1]]

    def rle(self, index: int) -> bytes:
        """COCO compressed RLE `counts` of one mask."""
        return encode_edges(self.edges(index), self.height * self.width, kernel=self.kernel)

    def intersection(self, one: int, other: int) -> int:
        """Pixels inside both masks."""
        edges, others = self.edges(one), self.edges(other)
        if self.kernel != native.NUMPY:
            return native.intersection(edges, others)
        inside = _pixels_before(others, edges[1::2]) - _pixels_before(others, edges[0::2])
        return int(inside.sum())

    def iou(self, one: int, other: int) -> float:
        """Intersection over union; 0 where either is empty."""
        if not _boxes_meet(self.boxes[one], self.boxes[other]):
            return 0.0
        shared = self.intersection(one, other)
        return shared / int(self.areas[one] + self.areas[other] - shared)


class MaskSampler:
    """Samples masks of one image at full size; the two axes' operators are shared by all its queries."""

    def __init__(
        self, sample: _Sample, *, cells: tuple[int, int], original: tuple[int, int], kernel: str, threads: int
    ) -> None:
        """Use `to_image` or `by_taps`."""
        self._sample, self._cells, self._original, self._kernel = sample, cells, original, kernel
        self._threads = threads

    @classmethod
    def to_image(
        cls,
        *,
        cells: tuple[int, int],
        padded: tuple[int, int],
        valid: tuple[int, int],
        original: tuple[int, int],
        kernel: str | None = None,
        threads: int = 1,
    ) -> MaskSampler:
        """Sample as mmdetection does: see `geometry.mask_taps`.

        Args:
            cells: (height, width) of the mask logits.
            padded: of the network input.
            valid: of the image in it.
            original: of the original image.
            kernel: one of `native.kernels`; None: the best.
            threads: that share the queries.
        """
        kernel = native.resolve(kernel)
        axes = [
            {"cells": c, "padded": p, "valid": v, "original": o}
            for c, p, v, o in zip(cells, padded, valid, original, strict=True)
        ]
        if kernel == native.NUMPY:
            rows, columns = (mask_taps(**axis) for axis in axes)
            sample = _in_numpy(rows, columns, (Stages.of(**axes[0]), Stages.of(**axes[1])))
        else:
            sample = _natively(kernel, *(native.mask_axis(**axis) for axis in axes))
        return cls(sample, cells=cells, original=original, kernel=kernel, threads=threads)

    @classmethod
    def by_taps(
        cls, rows: Taps, columns: Taps, *, cells: tuple[int, int], kernel: str | None = None, threads: int = 1
    ) -> MaskSampler:
        """Sample by any two operators of 2 or 4 taps, whose sources span 3 neighbouring cells at most."""
        kernel = native.resolve(kernel)
        if kernel == native.NUMPY:
            sample = _in_numpy(rows, columns)
        else:
            axes = (native.taps_axis(taps, cells=size) for taps, size in zip((rows, columns), cells, strict=True))
            sample = _natively(kernel, *axes)
        original = rows.source.shape[1], columns.source.shape[1]
        return cls(sample, cells=cells, original=original, kernel=kernel, threads=threads)

    def sample(self, mask_logits: Floats, queries: Ints) -> Masks:
        """Threshold the logits of some queries at 0, at the image's size.

        Args:
            mask_logits: float32 [Q, h, w].
            queries: int64 [N].

        Raises:
            InputError: logits of another size, a query that there is not, or more than a `native.Budget`.
        """
        if mask_logits.shape[1:] != self._cells:
            raise InputError(f"mask logits are {mask_logits.shape[1:]}; expected {self._cells}")
        if len(queries) and not 0 <= queries.min() <= queries.max() < len(mask_logits):
            raise InputError(f"queries must lie within 0 and {len(mask_logits) - 1}; got {queries.tolist()}")
        mask_logits = np.ascontiguousarray(mask_logits, np.float32)
        parts = np.array_split(np.ascontiguousarray(queries, np.int64), self._threads)
        run = map if self._threads == 1 else _pool(self._threads).map
        budget = native.Budget(edges=MAX_EDGES, doubts=MAX_DOUBTS)
        records, edges = zip(*run(lambda part: self._sample(mask_logits, part, budget), parts), strict=True)
        return self._masks(np.concatenate(records), edges[0] if len(edges) == 1 else np.concatenate(edges))

    def _masks(self, records: Records, edges: Edges) -> Masks:
        areas = records["area"]
        return Masks(
            areas=areas,
            boxes=records["box"],
            scores=records["sigmoid_sum"] / (areas + 1e-6),
            height=self._original[0],
            width=self._original[1],
            kernel=self._kernel,
            _edges=edges,
            _offsets=np.concatenate([[0], np.cumsum(records["num_edges"])]),
        )


def sample_query(
    logits: Floats,
    rows: Taps,
    columns: Taps,
    stages: tuple[Stages, Stages] | None = None,
    budget: native.Budget | None = None,
) -> tuple[Edges, float]:
    """Sample one query's mask in numpy.

    Args:
        logits: float32 [h, w].
        rows: the operator along the height.
        columns: the operator along the width.
        stages: the interpolations that both operators were composed of, which decide where rounding leaves a doubt.
            None: of others, which stand as they are.
        budget: what is in doubt is taken from it.

    Returns:
        The mask's edges, and the sum of sigmoid(logit) over its pixels.
    """
    window = _positive_window(logits, rows, columns)
    if window is None:
        return np.zeros(0, np.uint32), 0.0
    (row_begin, row_end), (column_begin, column_end) = window
    height = rows.source.shape[1]
    rows = _narrow(rows, row_begin, row_end)
    reach = rounding(logits)
    strip_width = max(1, _STRIP_PIXELS // (row_end - row_begin))
    edges, sigmoid_sum = [], 0.0
    for begin in range(column_begin, column_end, strip_width):
        strip_columns = _narrow(columns, begin, min(begin + strip_width, column_end))
        cells = slice(int(strip_columns.source[0, 0]), int(strip_columns.source[-1, -1]) + 1)
        tall = apply_rows(logits[:, cells], rows).T  # [cells, rows]
        taps = Taps(strip_columns.source - cells.start, strip_columns.weight)
        strip = apply_rows(np.ascontiguousarray(tall), taps)
        if stages is not None:
            x, y = np.nonzero(doubtful(strip, reach))
            if budget is not None:
                budget.take(doubts=len(x))
            strip[x, y] = pixels(logits, *stages, y + row_begin, x + begin)
        inside = strip > 0  # [columns, rows]
        edges.append(_column_edges(inside, begin * height + row_begin, height))
        sigmoid_sum += float(_sigmoid(strip[inside]).sum(dtype=np.float64))
    return _joined(np.concatenate(edges)).astype(np.uint32), sigmoid_sum


def _in_numpy(rows: Taps, columns: Taps, stages: tuple[Stages, Stages] | None = None) -> _Sample:
    return partial(_sample_queries, rows=rows, columns=columns, stages=stages)


def _natively(kernel: str, rows: native.Axis, columns: native.Axis) -> _Sample:
    return partial(native.sample, kernel=kernel, rows=rows, columns=columns)


def _sample_queries(
    mask_logits: Floats,
    queries: Ints,
    budget: native.Budget,
    *,
    rows: Taps,
    columns: Taps,
    stages: tuple[Stages, Stages] | None,
) -> tuple[Records, Edges]:
    """`native.sample` in numpy."""
    records = np.zeros(len(queries), native.RECORD)
    edges = [np.zeros(0, np.uint32)]
    for i, query in enumerate(queries.tolist()):
        found, sigmoid_sum = sample_query(mask_logits[query], rows, columns, stages, budget)
        budget.take(edges=len(found))
        area = int((found[1::2] - found[0::2]).sum(dtype=np.int64))
        records[i] = (area, len(found), sigmoid_sum, _box(found, rows.source.shape[1]))
        edges.append(found)
    return records, np.concatenate(edges)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="m2f")


def _positive_window(logits: Floats, rows: Taps, columns: Taps) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Rows and columns of the image that a positive cell reaches; an output is a mean of its cells."""
    positive = logits > 0
    cell_rows, cell_columns = np.flatnonzero(positive.any(axis=1)), np.flatnonzero(positive.any(axis=0))
    if not len(cell_rows):
        return None
    reached = outputs_reading(rows, cell_rows[0], cell_rows[-1])
    across = outputs_reading(columns, cell_columns[0], cell_columns[-1])
    return (reached, across) if reached[0] < reached[1] and across[0] < across[1] else None


def _narrow(taps: Taps, begin: int, end: int) -> Taps:
    return Taps(taps.source[:, begin:end], taps.weight[:, begin:end])


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


def _column_edges(inside: npt.NDArray[np.bool_], origin: int, height: int) -> Ints:
    """Edges of a block [columns, rows] whose first pixel is `origin` in an image `height` rows tall."""
    columns, rows = inside.shape
    fenced = np.zeros((columns, rows + 1), bool)  # a False after each column, so that no run crosses it here
    fenced[:, :rows] = inside
    flat = fenced.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        edges = np.append(0, edges)
    column, row = np.divmod(edges, rows + 1)
    return origin + column * height + row


def _joined(edges: Ints) -> Ints:
    """Join runs that touch: one that reaches the bottom goes on at the next column's top."""
    apart = edges[2::2] != edges[1:-1:2]
    return edges[np.concatenate([[True], np.repeat(apart, 2), [True]])] if len(edges) else edges


def _box(edges: Edges, height: int) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2, half-open; zeros when empty."""
    if not len(edges):
        return 0, 0, 0, 0
    first, last = edges[0::2].astype(np.int64), edges[1::2].astype(np.int64) - 1
    x1, x2 = int(first[0] // height), int(last[-1] // height) + 1
    if (first // height != last // height).any():  # from the bottom of a column to the top of the next
        return x1, 0, x2, height
    return x1, int((first % height).min()), x2, int((last % height).max()) + 1


def _pixels_before(edges: Edges, positions: Edges) -> Ints:
    """How many pixels of a mask lie before each position."""
    starts, ends = edges[0::2].astype(np.int64), edges[1::2].astype(np.int64)
    lengths = np.concatenate([[0], np.cumsum(ends - starts)])
    run = np.searchsorted(starts, positions, side="right")  # runs that start at or before it
    overhang = np.zeros(len(positions), np.int64)
    begun = run > 0
    overhang[begun] = np.maximum(ends[run[begun] - 1] - positions[begun], 0)
    return lengths[run] - overhang


def _boxes_meet(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> bool:
    return bool((np.maximum(one[:2], other[:2]) < np.minimum(one[2:], other[2:])).all())
