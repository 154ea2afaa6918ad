"""The kernel in numpy: the reference, and what runs where the package was installed without a C compiler.

`native.NativeKernel` has the same methods and makes the same masks, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from m2f.geometry import Floats, Halves, ImageGeometry, Ints, SizeHW, Taps, apply_rows, mask_taps, outputs_reading
from m2f.interpolate import Stages, doubtful, pixels, rounding
from m2f.sampling import RECORD, Budget, Edges, Records

_STRIP_PIXELS = 1 << 16  # a float32 strip and its temporaries stay in the second-level cache
_SURE = 1e4  # a logit whose sigmoid is 0 or 1, and that a weight of 0 still turns into 0
_BITS = 5  # payload bits of an RLE character; bit 5 says that more characters follow
_ASCII_OFFSET = 48
_MAX_CHARACTERS = 9  # of RLE, for differences of counts below 2^44; of 32-bit counts, 7 are enough


@dataclass(frozen=True)
class NumpyKernel:
    """Every computation that costs time for each pixel, in numpy.

    Attributes:
        threads: threads that share the masks of an image.
    """

    threads: int = 1
    name: ClassVar[str] = "numpy"

    def __str__(self) -> str:
        return self.name

    def operator(self, geometry: ImageGeometry) -> NumpyOperator:
        """Return the operator from cells to the original image, as mmdetection composes it: `geometry.mask_taps`."""
        rows, columns = map(mask_taps, geometry)
        return NumpyOperator(geometry.cells, rows, columns, (Stages.of(geometry.rows), Stages.of(geometry.columns)))

    def taps_operator(self, cells: SizeHW, rows: Taps, columns: Taps) -> NumpyOperator:
        """Return the operator of any taps, 2 or 4 a pixel, whose sources span at most 3 neighbouring cells."""
        return NumpyOperator(cells, rows, columns)

    def widen(self, halves: Halves) -> Floats:
        """Return numbers of half precision in single precision."""
        return halves.astype(np.float32)

    def compete(self, probabilities: Floats, scores: Floats, areas: Ints) -> npt.NDArray[np.int32]:
        """Find the query with the largest score x probability at each pixel of a block; the first among equals.

        Args:
            probabilities: float32 [K, rows, W], contiguous.
            scores: float32 [K], contiguous.
            areas: int64 [K]; the pixels of each query's mask (probability >= 0.5) are added.

        Returns:
            int32 [rows, W]: k + 1 where query k wins inside its own mask, -(k + 1) where it wins outside.
        """
        best, winner = np.full(probabilities.shape[1:], -1, np.float32), np.zeros(probabilities.shape[1:], np.int32)
        for k, (score, probability) in enumerate(zip(scores, probabilities, strict=True)):
            mine = probability >= np.float32(0.5)
            areas[k] += np.count_nonzero(mine)
            value = probability * score
            better = value > best
            np.copyto(best, value, where=better)
            np.copyto(winner, np.where(mine, k + 1, -(k + 1)), where=better, casting="same_kind")
        return winner

    def intersection(self, edges: Edges, others: Edges) -> int:
        """Return the number of pixels that two masks share."""
        return int((_pixels_before(others, edges[1::2]) - _pixels_before(others, edges[0::2])).sum())

    def encode(self, edges: Edges | Ints, num_pixels: int) -> bytes:
        """Return the COCO compressed RLE `counts` of a mask.

        Args:
            edges: uint32 or int64 [2 R], start and end of each run in column-major order, ascending; no run touches
                the next.
            num_pixels: height x width of the mask.
        """
        counts = np.diff(edges.astype(np.int64), prepend=0, append=num_pixels)
        if counts[-1] == 0 and len(counts) > 1:
            counts = counts[:-1]  # as cocoapi: no run of zeros at the end
        return _compress(counts)

    def decode_into(
        self, pixels: npt.NDArray[np.uint8], counts: bytes, height: int, width: int, *, packed: bool
    ) -> bool:
        """Decode RLE into the upper left of an array of zeros, whose rows are contiguous.

        Args:
            pixels: uint8 [>= height, >= width], or [>= height, >= ceil(width / 8)] if packed.
            counts: COCO compressed RLE.
            height: height of the mask.
            width: width of the mask.
            packed: one bit a pixel, in the order of `np.packbits` along a row, in place of one byte.

        Returns:
            Whether `counts` is RLE of height x width pixels. If not, the content of `pixels` is undefined.
        """
        runs = decode_runs(counts, height * width)
        if runs is None:
            return False
        values = np.arange(len(runs), dtype=np.uint8) & 1  # runs of zeros and ones alternate, zeros first
        mask = np.repeat(values, runs).reshape(width, height).T
        rows = np.packbits(mask, axis=1) if packed else mask
        pixels[:height, : rows.shape[1]] = rows
        return True


@dataclass(frozen=True)
class NumpyOperator:
    """The operator from mask cells to pixels of an image.

    Attributes:
        cells: (height, width) of the mask logits.
        rows: taps along the height.
        columns: taps along the width.
        stages: the two interpolations that `rows` and `columns` were composed of; they decide doubtful pixels.
            None: the taps were composed otherwise, and no pixel is doubtful.
    """

    cells: SizeHW
    rows: Taps
    columns: Taps
    stages: tuple[Stages, Stages] | None = None

    @property
    def original(self) -> SizeHW:
        """(height, width) of the image."""
        return self.rows.source.shape[1], self.columns.source.shape[1]

    def sample(self, mask_logits: Floats | Halves, queries: Ints, budget: Budget) -> tuple[Records, Edges]:
        """Threshold the logits of some queries at 0, at the image's size.

        Args:
            mask_logits: float32 or float16 [Q, h, w], contiguous.
            queries: int64 [N], contiguous, each below Q.
            budget: budget of the image; edges and doubtful pixels are taken from it.

        Returns:
            RECORD [N], and the edges of all masks one after the other, uint32 [sum of num_edges].

        Raises:
            InputError: the masks take more than the budget has.
        """
        records = np.zeros(len(queries), RECORD)
        edges = [np.zeros(0, np.uint32)]
        for i, query in enumerate(queries.tolist()):
            found, sigmoid_sum = self._sample_query(mask_logits[query].astype(np.float32, copy=False), budget)
            budget.take(edges=len(found))
            area = int((found[1::2] - found[0::2]).sum(dtype=np.int64))
            records[i] = (area, len(found), sigmoid_sum, _box(found, self.original[0]))
            edges.append(found)
        return records, np.concatenate(edges)

    def probabilities(self, mask_logits: Floats, queries: Ints, block: slice) -> Floats:
        """Return sigmoid(logit) of some queries in a block of the image's rows.

        Args:
            mask_logits: float32 [Q, h, w], contiguous. NaN counts as far outside.
            queries: int64 [N], contiguous, each below Q.
            block: the rows.

        Returns:
            float32 [N, rows, W].
        """
        source, weight = self.rows.source[:, block], self.rows.weight[:, block]
        first, last = int(source[0, 0]), int(source[-1, -1])
        band = mask_logits[queries, first : last + 1]  # [N, cells, w]
        band = np.nan_to_num(band, nan=-_SURE, posinf=_SURE, neginf=-_SURE)
        columns_first = np.ascontiguousarray(band.reshape(-1, band.shape[2]).T)
        wide = np.ascontiguousarray(apply_rows(columns_first, self.columns).T)  # [N * cells, W]
        return sigmoid(_matrix(Taps(source - first, weight)) @ wide.reshape(*band.shape[:2], -1))

    def _sample_query(self, logits: Floats, budget: Budget) -> tuple[Edges, float]:
        """Return the edges of one mask, and the sum of sigmoid(logit) over its pixels.

        Only the region that can be positive is computed, in strips of whole columns: COCO's runs go down the columns.
        """
        window = _positive_window(logits, self.rows, self.columns)
        if window is None:
            return np.zeros(0, np.uint32), 0.0
        (row_begin, row_end), (column_begin, column_end) = window
        height = self.original[0]
        rows = _narrow(self.rows, row_begin, row_end)
        reach = rounding(logits)
        strip_width = max(1, _STRIP_PIXELS // (row_end - row_begin))
        edges, sigmoid_sum = [], 0.0
        for begin in range(column_begin, column_end, strip_width):
            columns = _narrow(self.columns, begin, min(begin + strip_width, column_end))
            cells = slice(int(columns.source[0, 0]), int(columns.source[-1, -1]) + 1)
            tall = apply_rows(logits[:, cells], rows).T  # [cells, rows]
            strip = apply_rows(np.ascontiguousarray(tall), Taps(columns.source - cells.start, columns.weight))
            if self.stages is not None:
                x, y = np.nonzero(doubtful(strip, reach))
                budget.take(doubts=len(x))
                strip[x, y] = pixels(logits, *self.stages, y + row_begin, x + begin)
            inside = strip > 0  # [columns, rows]
            edges.append(_column_edges(inside, begin * height + row_begin, height))
            sigmoid_sum += float(sigmoid(strip[inside]).sum(dtype=np.float64))
        return _joined(np.concatenate(edges)).astype(np.uint32), sigmoid_sum


def sigmoid(logits: Floats) -> Floats:
    """Return 1 / (1 + exp(-logits)), computed in place."""
    np.negative(logits, out=logits)
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the sigmoid 0
        np.exp(logits, out=logits)
    logits += np.float32(1)
    return np.reciprocal(logits, out=logits)


def _positive_window(logits: Floats, rows: Taps, columns: Taps) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the rows and columns of the image that read a positive cell; other pixels cannot be positive."""
    positive = logits > 0
    cell_rows, cell_columns = np.flatnonzero(positive.any(axis=1)), np.flatnonzero(positive.any(axis=0))
    if not len(cell_rows):
        return None
    down = outputs_reading(rows, cell_rows[0], cell_rows[-1])
    across = outputs_reading(columns, cell_columns[0], cell_columns[-1])
    return (down, across) if down[0] < down[1] and across[0] < across[1] else None


def _narrow(taps: Taps, begin: int, end: int) -> Taps:
    return Taps(taps.source[:, begin:end], taps.weight[:, begin:end])


def _matrix(taps: Taps) -> Floats:
    """Return the operator as a dense matrix, float32 [out, in]."""
    matrix = np.zeros((taps.source.shape[1], int(taps.source[-1, -1]) + 1), np.float32)
    outputs = np.arange(len(matrix))
    for source, weight in zip(taps.source, taps.weight, strict=True):
        matrix[outputs, source] += weight
    return matrix


def _column_edges(inside: npt.NDArray[np.bool_], origin: int, height: int) -> Ints:
    """Return the edges of a block [columns, rows] whose first pixel is `origin` in an image `height` rows tall."""
    columns, rows = inside.shape
    fenced = np.zeros((columns, rows + 1), bool)  # a False after each column, so that no run crosses into the next
    fenced[:, :rows] = inside
    flat = fenced.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        edges = np.append(0, edges)
    column, row = np.divmod(edges, rows + 1)
    return origin + column * height + row


def _joined(edges: Ints) -> Ints:
    """Join runs that touch: a run that reaches the bottom of a column continues at the top of the next."""
    apart = edges[2::2] != edges[1:-1:2]
    return edges[np.concatenate([[True], np.repeat(apart, 2), [True]])] if len(edges) else edges


def _box(edges: Edges, height: int) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2, half-open; zeros for an empty mask."""
    if not len(edges):
        return 0, 0, 0, 0
    first, last = edges[0::2].astype(np.int64), edges[1::2].astype(np.int64) - 1
    x1, x2 = int(first[0] // height), int(last[-1] // height) + 1
    if (first // height != last // height).any():  # from the bottom of a column to the top of the next
        return x1, 0, x2, height
    return x1, int((first % height).min()), x2, int((last % height).max()) + 1


def _pixels_before(edges: Edges, positions: Edges) -> Ints:
    """Return how many pixels of a mask lie before each position."""
    starts, ends = edges[0::2].astype(np.int64), edges[1::2].astype(np.int64)
    lengths = np.concatenate([[0], np.cumsum(ends - starts)])
    run = np.searchsorted(starts, positions, side="right")  # runs that start at or before the position
    overhang = np.zeros(len(positions), np.int64)
    begun = run > 0
    overhang[begun] = np.maximum(ends[run[begun] - 1] - positions[begun], 0)
    return lengths[run] - overhang


def _compress(counts: Ints) -> bytes:
    """Return `rleToString` of cocoapi's common/maskApi.c, for all counts at a time."""
    values = counts.copy()
    values[3:] -= counts[1:-2]  # a count is written as the difference to the count before the last
    characters = np.zeros((len(values), _MAX_CHARACTERS), np.uint8)
    open_rows = np.arange(len(values))
    used = np.zeros(characters.shape, bool)
    for column in range(_MAX_CHARACTERS):
        low = values & 31
        values = values >> _BITS
        more = np.where(low & 16, values != -1, values != 0)
        characters[open_rows, column] = low + 32 * more + _ASCII_OFFSET
        used[open_rows, column] = True
        open_rows, values = open_rows[more], values[more]
        if not len(values):
            break
    return characters[used].tobytes()


def decode_runs(counts: bytes, num_pixels: int) -> Ints | None:
    """Decode RLE to the lengths of all runs, zeros first; None where `counts` is not RLE of so many pixels."""
    runs = _decompress(counts)
    if runs is None or not ((runs >= 0) & (runs <= num_pixels)).all() or runs.sum() != num_pixels:
        return None
    return runs


def _decompress(counts: bytes) -> Ints | None:
    """Return `rleFrString` of cocoapi's common/maskApi.c, or None for what is not RLE."""
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - _ASCII_OFFSET
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = (codes & 32) == 0  # the character that ends a value
    ends = np.flatnonzero(last)
    begins = np.concatenate([[0], ends[:-1] + 1])
    position = np.arange(len(codes)) - np.repeat(begins, ends - begins + 1)
    if position.max() >= _MAX_CHARACTERS:
        return None
    values = np.add.reduceat((codes & 31) << (_BITS * position), begins)
    negative = (codes[ends] & 16) != 0
    values -= np.where(negative, np.int64(1) << (_BITS * (position[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
