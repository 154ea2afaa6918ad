"""Masks as runs of pixels down the columns of a picture of any size: cut, shifted, joined and compared.

`m2f.masks` has the masks of one picture of the server, whose pixels 32 bits can count. Here a picture may be larger,
and a mask is a small part of it: what the functions cost depends on the mask's columns only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m2f.geometry import Ints
from m2f.kernels import BEST
from m2f.numpy_kernel import NumpyKernel
from m2f.rle import decode_edges
from m2f.sampling import Edges

_UINT32_PIXELS = 1 << 32  # of a picture; the compiled kernel counts pixels in 32 bits


class Rect(NamedTuple):
    """A part of a picture, in pixels; the right and lower ends are outside."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def empty(self) -> bool:
        """Whether there is no pixel in it."""
        return self.x1 >= self.x2 or self.y1 >= self.y2

    def intersection(self, other: Rect) -> Rect:
        """Return the part that lies in both; it may be empty."""
        return Rect(
            max(self.x1, other.x1), max(self.y1, other.y1), min(self.x2, other.x2), min(self.y2, other.y2)
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Runs:
    """A mask.

    Attributes:
        columns: int64 [R], the column x of each run, ascending.
        begins: int64 [R], its first pixel y; ascending in a column, where no run touches the next.
        ends: int64 [R], the pixel after its last one.
    """

    columns: Ints
    begins: Ints
    ends: Ints

    @classmethod
    def of_rle(cls, counts: bytes, height: int, width: int, *, x: int = 0, y: int = 0) -> Runs:
        """Read the COCO compressed RLE of a picture whose upper left pixel is (x, y) of a larger one.

        Raises:
            InputError: `counts` is not RLE of height x width pixels.
        """
        edges = decode_edges(counts, height, width)
        begins, ends = edges[0::2], edges[1::2]
        real = begins < ends
        return union([_split(begins[real], ends[real], height)]).shifted(x, y)  # runs of RLE may touch

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.ends - self.begins).sum())

    @property
    def box(self) -> Rect:
        """The smallest part of the picture with all pixels; zeros of an empty mask."""
        if not len(self.columns):
            return Rect(0, 0, 0, 0)
        return Rect(
            int(self.columns[0]), int(self.begins.min()), int(self.columns[-1]) + 1, int(self.ends.max())
        )  # fmt: skip

    def shifted(self, x: int, y: int) -> Runs:
        """Return the mask, moved right by x and down by y."""
        return Runs(self.columns + x, self.begins + y, self.ends + y)

    def enlarged(self, factor: int) -> Runs:
        """Return the mask with each pixel as factor x factor pixels."""
        columns = (self.columns[:, None] * factor + np.arange(factor)).reshape(-1)
        begins, ends = (np.repeat(side * factor, factor) for side in (self.begins, self.ends))
        order = np.argsort(columns, kind="stable")
        return Runs(columns[order], begins[order], ends[order])

    def inside(self, rect: Rect) -> Runs:
        """Return the pixels in a part of the picture."""
        return _chosen(
            self.columns,
            np.maximum(self.begins, rect.y1),
            np.minimum(self.ends, rect.y2),
            (self.columns >= rect.x1) & (self.columns < rect.x2),
        )

    def outside(self, rect: Rect) -> Runs:
        """Return the pixels that are not in a part of the picture."""
        beside = (self.columns < rect.x1) | (self.columns >= rect.x2)
        return union(
            [
                _chosen(self.columns, self.begins, self.ends, beside),
                _chosen(self.columns, self.begins, np.minimum(self.ends, rect.y1), ~beside),
                _chosen(self.columns, np.maximum(self.begins, rect.y2), self.ends, ~beside),
            ]
        )

    def edges(self, rect: Rect) -> Edges:
        """Return where the runs of a mask that lies in a part of the picture start and end, down the part's columns.

        Args:
            rect: the part, of less than 2^32 pixels.

        Returns:
            uint32 [2 R], ascending, as `m2f.rle` and the kernels have them.
        """
        height = rect.y2 - rect.y1
        return (_flat(self, height) - (rect.x1 * height + rect.y1)).astype(np.uint32)

    def rle(self, height: int, width: int) -> bytes:
        """Return the COCO compressed RLE `counts` of the mask in a picture of height x width pixels.

        pycocotools, whose counts have 32 bits, cannot read that of a picture of 2^32 pixels or more; m2f can.
        """
        edges = _flat(self, height)
        if height * width < _UINT32_PIXELS:
            return BEST.encode(edges.astype(np.uint32), height * width)
        return NumpyKernel().encode(edges, height * width)


def union(masks: Sequence[Runs]) -> Runs:
    """Return the pixels that are in any of one mask or more."""
    parts = [(mask.columns, mask.begins, mask.ends) for mask in masks]
    columns, begins, ends = map(np.concatenate, zip(*parts, strict=True))
    if not len(columns):
        return Runs(columns, begins, ends)
    height = int(ends.max()) + 1  # the runs of two columns do not touch
    order = np.lexsort((begins, columns))
    columns, begins, ends = columns[order], begins[order], ends[order]
    reached = np.maximum.accumulate(columns * height + ends)
    first = np.concatenate([[True], columns[1:] * height + begins[1:] > reached[:-1]])
    last = np.concatenate([first[1:], [True]])
    return Runs(columns[first], begins[first], reached[last] - columns[first] * height)


def _chosen(columns: Ints, begins: Ints, ends: Ints, wanted: npt.NDArray[np.bool_]) -> Runs:
    keep = wanted & (begins < ends)
    return Runs(columns[keep], begins[keep], ends[keep])


def _flat(mask: Runs, height: int) -> Ints:
    """Return where the runs of a mask start and end, in turn, counted down the columns of a picture."""
    tops = mask.columns * height
    edges = np.empty(2 * len(tops), np.int64)
    np.add(tops, mask.begins, out=edges[0::2])
    np.add(tops, mask.ends, out=edges[1::2])
    apart = edges[1:-1:2] != edges[2::2]  # a run that ends at the bottom goes on at the top of the next column
    return edges if apart.all() else edges[np.concatenate([[True], np.repeat(apart, 2), [True]])]


def _split(begins: Ints, ends: Ints, height: int) -> Runs:
    """Return runs down the columns as runs that each lie in one column."""
    first, last = begins // height, (ends - 1) // height
    pieces = last - first + 1
    run = np.repeat(np.arange(len(begins)), pieces)
    columns = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + first[run]
    tops = columns * height
    return Runs(columns, np.maximum(begins[run], tops) - tops, np.minimum(ends[run], tops + height) - tops)
