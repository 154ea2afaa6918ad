"""COCO run-length encoding: column-major runs, and the compressed string `pycocotools` reads.

The algorithm of the string is that of cocoapi (`rleToString` and `rleFrString` in common/maskApi.c),
written for whole arrays at a time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2f.contract import InputError

Ints = npt.NDArray[np.int64]

_BITS = 5  # payload bits of a character; bit 5 says that more follow
_ASCII_OFFSET = 48
_MAX_CHARACTERS = 7  # enough for any difference of two 32-bit counts


def encode_runs(starts: Ints, ends: Ints, num_pixels: int) -> bytes:
    """Encode runs of ones as COCO compressed RLE.

    Args:
        starts: int64 [R], first pixel of each run in column-major order, ascending.
        ends: int64 [R], one past the last pixel; no run touches the next.
        num_pixels: height x width of the mask.

    Returns:
        The `counts` string of a COCO RLE object.
    """
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0], edges[-1] = 0, num_pixels
    edges[1:-1:2], edges[2:-1:2] = starts, ends
    counts = np.diff(edges)
    if counts[-1] == 0 and len(counts) > 1:
        counts = counts[:-1]  # as cocoapi: no zero run at the end
    return _compress(counts)


def encode_mask(mask: npt.NDArray[np.generic]) -> bytes:
    """Encode a dense mask [H, W] (non-zero is inside) as COCO compressed RLE."""
    column_major = np.asarray(mask).T.reshape(-1) != 0
    edges = np.flatnonzero(np.diff(column_major, prepend=False, append=False))
    return encode_runs(edges[0::2], edges[1::2], column_major.size)


def decode(counts: bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Decode COCO compressed RLE to a dense 0/1 mask uint8 [height, width].

    Raises:
        InputError: the string is not RLE, or does not cover height x width pixels.
    """
    runs = _decompress(counts)
    if runs.sum() != height * width or (runs < 0).any():
        raise InputError(f"RLE covers {runs.sum()} pixels; expected {height} x {width}")
    values = np.arange(len(runs), dtype=np.uint8) & 1  # runs of zeros and ones alternate, zeros first
    return np.repeat(values, runs).reshape(width, height).T


def _compress(counts: Ints) -> bytes:
    values = counts.copy()
    values[3:] -= counts[1:-2]  # a count is written as the difference to the one before the last
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


def _decompress(counts: bytes) -> Ints:
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - _ASCII_OFFSET
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise InputError("not a COCO compressed RLE string")
    last = (codes & 32) == 0  # the character that ends a value
    ends = np.flatnonzero(last)
    begins = np.concatenate([[0], ends[:-1] + 1])
    position = np.arange(len(codes)) - np.repeat(begins, ends - begins + 1)
    if position.max() >= _MAX_CHARACTERS + 2:
        raise InputError("not a COCO compressed RLE string")
    values = np.add.reduceat((codes & 31) << (_BITS * position), begins)
    negative = (codes[ends] & 16) != 0
    values -= np.where(negative, np.int64(1) << (_BITS * (position[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
