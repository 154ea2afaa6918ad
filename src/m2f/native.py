"""The compiled kernel, `kernel/*.c`, through ctypes: loaded, and called with the GIL released.

Its methods and results are those of `numpy_kernel.NumpyKernel`, which documents them.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2f.geometry import AxisGeometry, Floats, Halves, ImageGeometry, Ints, SizeHW, Taps
from m2f.sampling import RECORD, Budget, Edges, Records

LIBRARY = Path(__file__).with_name("_kernel.so")  # made by hatch_build.py

_LEVELS = ("baseline", "avx2", "avx512")  # in the order of kernel.h
_COLUMN_MORE = 32  # the kernel asks for room for at most height + 32 edges before each pixel column
_CHARACTERS = 7  # of RLE at most, for each count
_pointer = ctypes.c_void_p
_int = ctypes.c_int64


class _Axis(ctypes.Structure):
    """`Axis` of kernel.h: the operator from mask cells to pixels along one axis."""

    _fields_ = (
        ("size_in", _int), ("size_out", _int), ("taps", _int),
        ("source", _pointer), ("weight", _pointer), ("begin", _pointer), ("end", _pointer),
        ("padded", _int), ("valid", _int),
    )  # fmt: skip


def load(path: Path = LIBRARY) -> tuple[NativeKernel, ...]:
    """Return a kernel for each instruction set that this processor has, the best first.

    Returns:
        No kernels if the library is missing, or was built for another machine.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return ()
    for name, result, arguments in (
        ("m2f_level", _int, ()),
        ("m2f_mask_taps", None, (_int, _int, _pointer)),
        ("m2f_outputs_reading", None, (_pointer,)),
        ("m2f_widen", None, (_int, _pointer, _pointer, _int)),
        ("m2f_sample", _int, (_int, _pointer, _int, _pointer, _int, *[_pointer] * 4, _int, _pointer)),
        ("m2f_probabilities", _int, (_int, _pointer, _pointer, _int, _pointer, _pointer, _int, _int, _pointer)),
        ("m2f_compete", None, (_int, _pointer, _int, _int, _pointer, _pointer, _pointer)),
        ("m2f_intersection", _int, (_pointer, _int, _pointer, _int)),
        ("m2f_encode", _int, (_pointer, _int, _int, _pointer)),
        ("m2f_decode", _int, (ctypes.c_char_p, _int, _int, _int, _int, _pointer, _int)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return tuple(NativeKernel(library, level) for level in range(library.m2f_level(), -1, -1))


@dataclass(frozen=True)
class NativeKernel:
    """The compiled kernel at one instruction set.

    Attributes:
        library: the loaded `_kernel.so`.
        level: index of the instruction set in kernel.h.
        threads: threads that share the masks of an image.
        usual_edges: edges that a call has room for at first; memory that is not touched costs nothing.
    """

    library: ctypes.CDLL = field(repr=False)
    level: int
    threads: int = 1
    usual_edges: int = 1 << 18

    @property
    def name(self) -> str:
        """Instruction set: `avx512`, `avx2` or `baseline`."""
        return _LEVELS[self.level]

    def __str__(self) -> str:
        return self.name

    def operator(self, geometry: ImageGeometry) -> NativeOperator:
        """Return the operator from cells to the original image."""
        return NativeOperator(self, *map(self._mask_axis, geometry))

    def taps_operator(self, cells: SizeHW, rows: Taps, columns: Taps) -> NativeOperator:
        """Return the operator of any taps."""
        return NativeOperator(self, *map(self._taps_axis, cells, (rows, columns)))

    def widen(self, halves: Halves) -> Floats:
        """Return numbers of half precision in single precision."""
        halves = np.ascontiguousarray(halves)
        out = np.empty(halves.shape, np.float32)
        self.library.m2f_widen(self.level, halves.ctypes.data, out.ctypes.data, out.size)
        return out

    def compete(self, probabilities: Floats, scores: Floats, areas: Ints) -> npt.NDArray[np.int32]:
        """Find the query with the largest score x probability at each pixel of a block."""
        winners = np.empty(probabilities.shape[1:], np.int32)
        pointers = scores.ctypes.data, winners.ctypes.data, areas.ctypes.data
        self.library.m2f_compete(self.level, probabilities.ctypes.data, len(probabilities), winners.size, *pointers)
        return winners

    def intersection(self, edges: Edges, others: Edges) -> int:
        """Return the number of pixels that two masks share."""
        return int(self.library.m2f_intersection(edges.ctypes.data, len(edges), others.ctypes.data, len(others)))

    def encode(self, edges: Edges, num_pixels: int) -> bytes:
        """Return the COCO compressed RLE `counts` of a mask."""
        characters = np.empty((len(edges) + 1) * _CHARACTERS, np.uint8)
        length = self.library.m2f_encode(edges.ctypes.data, len(edges), num_pixels, characters.ctypes.data)
        return characters[:length].tobytes()

    def decode_into(
        self, pixels: npt.NDArray[np.uint8], counts: bytes, height: int, width: int, *, packed: bool
    ) -> bool:
        """Decode RLE into the upper left of an array of zeros; return whether it is RLE of height x width pixels."""
        covered = self.library.m2f_decode(
            counts, len(counts), height, width, packed, pixels.ctypes.data, pixels.strides[0]
        )
        return bool(covered == height * width > 0)  # > 0: the library answers -1 for what is not RLE

    def _mask_axis(self, sizes: AxisGeometry) -> _Axis:
        axis = _empty_axis(sizes.cells, sizes.original, 4)
        self.library.m2f_mask_taps(sizes.padded, sizes.valid, ctypes.byref(axis))
        self.library.m2f_outputs_reading(ctypes.byref(axis))
        return axis

    def _taps_axis(self, cells: int, taps: Taps) -> _Axis:
        axis = _empty_axis(cells, taps.source.shape[1], len(taps.source))
        axis.arrays[0][...], axis.arrays[1][...] = taps
        self.library.m2f_outputs_reading(ctypes.byref(axis))
        return axis


@dataclass(frozen=True)
class NativeOperator:
    """The operator from mask cells to pixels of an image, for the compiled kernel."""

    kernel: NativeKernel
    rows: _Axis
    columns: _Axis

    @property
    def cells(self) -> SizeHW:
        """(height, width) of the mask logits."""
        return self.rows.size_in, self.columns.size_in

    @property
    def original(self) -> SizeHW:
        """(height, width) of the image."""
        return self.rows.size_out, self.columns.size_out

    def sample(self, mask_logits: Floats | Halves, queries: Ints, budget: Budget) -> tuple[Records, Edges]:
        """Threshold the logits of some queries at 0; the room for edges never exceeds the budget."""
        masks = np.empty(len(queries), RECORD)
        parts: list[Edges] = []
        done, capacity = 0, self.kernel.usual_edges
        while done < len(queries):
            enough = budget.edges + self.rows.size_out + _COLUMN_MORE  # a mask that needs more exceeds the budget
            edges, doubts = np.empty(min(capacity, enough), np.uint32), _int(before := budget.doubts)
            step = self.kernel.library.m2f_sample(
                self.kernel.level, mask_logits.ctypes.data, mask_logits.dtype == np.float16,
                queries[done:].ctypes.data, len(queries) - done,
                ctypes.byref(self.rows), ctypes.byref(self.columns), masks[done:].ctypes.data, edges.ctypes.data,
                len(edges), ctypes.byref(doubts),
            )  # fmt: skip
            if step < 0:
                raise MemoryError("no memory to sample a mask")
            found = int(masks["num_edges"][done : done + step].sum())
            budget.take(edges=found, doubts=before - doubts.value)
            if not step and capacity >= enough:
                budget.take(edges=enough)
            parts.append(edges[:found])
            done, capacity = done + step, 4 * capacity
        return masks, parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint32), *parts])

    def probabilities(self, mask_logits: Floats, queries: Ints, block: slice) -> Floats:
        """Return sigmoid(logit) of some queries in a block of the image's rows: float32 [N, rows, W]."""
        out = np.empty((len(queries), block.stop - block.start, self.columns.size_out), np.float32)
        done = self.kernel.library.m2f_probabilities(
            self.kernel.level, mask_logits.ctypes.data, queries.ctypes.data, len(queries),
            ctypes.byref(self.rows), ctypes.byref(self.columns), block.start, block.stop, out.ctypes.data,
        )  # fmt: skip
        if done < 0:
            raise MemoryError("no memory to interpolate a row")
        return out


def _empty_axis(cells: int, original: int, taps: int) -> _Axis:
    arrays = [
        np.empty((taps, original), np.int32), np.empty((taps, original), np.float32),
        np.empty(cells, np.int32), np.empty(cells, np.int32),
    ]  # fmt: skip
    axis = _Axis(cells, original, taps, *(array.ctypes.data for array in arrays))
    axis.arrays = arrays  # lives as long as the pointers to it
    return axis
