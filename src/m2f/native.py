"""The compiled kernel, `kernel/*.c`, through ctypes: found, loaded and called with the GIL released.

Every function here has a twin in numpy, in `masks`, `label_maps`, `panoptic`, `geometry` or `rle`, that gives the same
answer and runs where the package was installed without a C compiler. `kernels` says which there are.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError
from m2f.geometry import Floats, Ints, Taps

NUMPY = "numpy"
LIBRARY = Path(__file__).with_name("_kernel.so")  # made by hatch_build.py

Edges = npt.NDArray[np.uint32]
Records = npt.NDArray[np.void]
RECORD = np.dtype([("area", np.int64), ("num_edges", np.int64), ("sigmoid_sum", np.float64), ("box", np.int32, 4)])

_LEVELS = ("baseline", "avx2", "avx512")  # in the order of kernel.h
_USUAL_EDGES = 1 << 18  # of all the masks of a call; memory that is not touched costs nothing
_COLUMN_MORE = 32  # edges for which the kernel wants room before a column, beyond its height, at most
_CHARACTERS = 7  # of RLE at most, for each count
_pointer = ctypes.c_void_p
_int = ctypes.c_int64


class Axis(ctypes.Structure):
    """`Axis` of kernel.h: the operator from mask cells to pixels along one axis."""

    _fields_ = (
        ("size_in", _int),
        ("size_out", _int),
        ("taps", _int),
        ("source", _pointer),
        ("weight", _pointer),
        ("begin", _pointer),
        ("end", _pointer),
        ("padded", _int),
        ("valid", _int),
    )


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # not built, or for another machine
        return None
    for name, result, arguments in (
        ("m2f_level", _int, ()),
        ("m2f_mask_taps", None, (_int, _int, _pointer)),
        ("m2f_outputs_reading", None, (_pointer,)),
        ("m2f_sample", _int, (_int, _pointer, _pointer, _int, *[_pointer] * 4, _int, _pointer)),
        ("m2f_probabilities", _int, (_int, _pointer, _pointer, _int, _pointer, _pointer, _int, _int, _pointer)),
        ("m2f_compete", None, (_int, _pointer, _int, _int, _pointer, _pointer, _pointer)),
        ("m2f_intersection", _int, (_pointer, _int, _pointer, _int)),
        ("m2f_encode", _int, (_pointer, _int, _int, _pointer)),
        ("m2f_decode", _int, (ctypes.c_char_p, _int, _int, _int, _int, _pointer, _int)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_library = _load(LIBRARY)


def kernels() -> tuple[str, ...]:
    """Return what can run here, best first: instruction sets of the compiled kernel, then `numpy`."""
    return _kernels(_library)


@cache
def _kernels(library: ctypes.CDLL | None) -> tuple[str, ...]:
    return (NUMPY,) if library is None else (*reversed(_LEVELS[: library.m2f_level() + 1]), NUMPY)


def resolve(kernel: str | None) -> str:
    """Return the kernel to run: the one named, or the best.

    Raises:
        InputError: it cannot run here.
    """
    if kernel is not None and kernel not in kernels():
        raise InputError(f"kernel {kernel!r} cannot run here; allowed: {', '.join(kernels())}")
    return kernel or kernels()[0]


def mask_axis(*, cells: int, padded: int, valid: int, original: int) -> Axis:
    """Return `geometry.mask_taps` as the kernel wants it."""
    axis = _empty_axis(cells, original, 4)
    _call().m2f_mask_taps(padded, valid, ctypes.byref(axis))
    _call().m2f_outputs_reading(ctypes.byref(axis))
    return axis


def taps_axis(taps: Taps, *, cells: int) -> Axis:
    """Return any operator of 2 or 4 taps as the kernel wants it."""
    axis = _empty_axis(cells, taps.source.shape[1], len(taps.source))
    axis.arrays[0][...], axis.arrays[1][...] = taps
    _call().m2f_outputs_reading(ctypes.byref(axis))
    return axis


class Budget:
    """What the masks of an image may take, together, whichever thread samples them.

    Attributes:
        edges: how many more they may have.
        doubts: how many more pixels may be so close to 0 that they are decided one by one (`interpolate.doubtful`).
    """

    def __init__(self, *, edges: int, doubts: int) -> None:
        self.edges, self.doubts = self._allowed = edges, doubts
        self._lock = threading.Lock()

    def take(self, *, edges: int = 0, doubts: int = 0) -> None:
        """Count what was found.

        Raises:
            InputError: it was too much.
        """
        with self._lock:
            self.edges -= edges
            self.doubts -= doubts
        for left, allowed, what in zip(
            (self.edges, self.doubts), self._allowed, ("edges", "pixels next to 0"), strict=True
        ):
            if left < 0:
                raise InputError(
                    f"the masks of an image have more {what} than the {allowed} allowed: lower 'pre_top_k', or raise "
                    "'score_threshold'",
                    kind="output_too_large",
                )


def sample(
    mask_logits: Floats, queries: Ints, budget: Budget, *, kernel: str, rows: Axis, columns: Axis
) -> tuple[Records, Edges]:
    """Sample the masks of some queries: `masks.sample_query` for each.

    Args:
        mask_logits: float32 [Q, h, w], contiguous; h and w as the axes'.
        queries: int64 [N], contiguous, each below Q.
        budget: of the image. No more room for edges is made than it has left, so it bounds the memory, too.
        kernel: one of `kernels`, not `numpy`.
        rows: the operator along the height.
        columns: the operator along the width.

    Returns:
        RECORD [N], and the masks' edges uint32 [sum of num_edges].

    Raises:
        InputError: more than the budget has.
    """
    masks = np.empty(len(queries), RECORD)
    parts: list[Edges] = []
    done, capacity = 0, _USUAL_EDGES
    while done < len(queries):
        enough = budget.edges + rows.size_out + _COLUMN_MORE  # a mask for which this is none has too many
        edges, doubts = np.empty(min(capacity, enough), np.uint32), _int(before := budget.doubts)
        step = _call().m2f_sample(
            _LEVELS.index(kernel),
            mask_logits.ctypes.data,
            queries[done:].ctypes.data,
            len(queries) - done,
            ctypes.byref(rows),
            ctypes.byref(columns),
            masks[done:].ctypes.data,
            edges.ctypes.data,
            len(edges),
            ctypes.byref(doubts),
        )
        if step < 0:
            raise MemoryError("no memory to sample a mask")
        found = int(masks["num_edges"][done : done + step].sum())
        budget.take(edges=found, doubts=before - doubts.value)
        if not step and capacity >= enough:
            budget.take(edges=enough)
        parts.append(edges[:found])
        done, capacity = done + step, 4 * capacity
    return masks, parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint32), *parts])


def probabilities(
    mask_logits: Floats, queries: Ints, block: slice, *, kernel: str, rows: Axis, columns: Axis
) -> Floats:
    """Return sigmoid(logit) of some queries in a block of the image's rows.

    Args:
        mask_logits: float32 [Q, h, w], contiguous; h and w as the axes'.
        queries: int64 [N], contiguous, each below Q.
        block: the rows.
        kernel: one of `kernels`, not `numpy`.
        rows: the operator along the height.
        columns: the operator along the width.

    Returns:
        float32 [N, rows, W].
    """
    out = np.empty((len(queries), block.stop - block.start, columns.size_out), np.float32)
    done = _call().m2f_probabilities(
        _LEVELS.index(kernel),
        mask_logits.ctypes.data,
        queries.ctypes.data,
        len(queries),
        ctypes.byref(rows),
        ctypes.byref(columns),
        block.start,
        block.stop,
        out.ctypes.data,
    )
    if done < 0:
        raise MemoryError("no memory to interpolate a row")
    return out


def compete(probabilities: Floats, scores: Floats, areas: Ints, *, kernel: str) -> npt.NDArray[np.int32]:
    """`panoptic.block_winners`; the arrays are contiguous."""
    winners = np.empty(probabilities.shape[1:], np.int32)
    _call().m2f_compete(
        _LEVELS.index(kernel),
        probabilities.ctypes.data,
        len(probabilities),
        winners.size,
        scores.ctypes.data,
        winners.ctypes.data,
        areas.ctypes.data,
    )
    return winners


def intersection(edges: Edges, others: Edges) -> int:
    """Return the pixels that two masks share."""
    return int(_call().m2f_intersection(edges.ctypes.data, len(edges), others.ctypes.data, len(others)))


def encode(edges: Edges, num_pixels: int) -> bytes:
    """`rle.encode_edges`."""
    characters = np.empty((len(edges) + 1) * _CHARACTERS, np.uint8)
    length = _call().m2f_encode(edges.ctypes.data, len(edges), num_pixels, characters.ctypes.data)
    return characters[:length].tobytes()


def decode_into(pixels: npt.NDArray[np.uint8], counts: bytes, height: int, width: int, packed: bool) -> bool:
    """`rle.decode_into`; whether `counts` is RLE and covers the mask."""
    library, stride = _call(), pixels.strides[0]
    covered = library.m2f_decode(counts, len(counts), height, width, packed, pixels.ctypes.data, stride)
    return bool(covered == height * width > 0)  # -1 is also the product of two sides


def _call() -> ctypes.CDLL:
    assert _library is not None  # whoever names a kernel has it from `kernels`
    return _library


def _empty_axis(cells: int, original: int, taps: int) -> Axis:
    arrays = [
        np.empty((taps, original), np.int32), np.empty((taps, original), np.float32),
        np.empty(cells, np.int32), np.empty(cells, np.int32),
    ]  # fmt: skip
    axis = Axis(cells, original, taps, *(array.ctypes.data for array in arrays))
    axis.arrays = arrays  # lives as long as the pointers to it
    return axis
