"""COCO run-length encoding: column-major runs, and the compressed string `pycocotools` reads.

The algorithm of the string is that of cocoapi (`rleToString` and `rleFrString` in common/maskApi.c),
written for whole arrays at a time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2f import native
from m2f.errors import InputError
from m2f.geometry import Ints
from m2f.limits import MAX_RLE_BYTES

_BITS = 5  # payload bits of a character; bit 5 says that more follow
_ASCII_OFFSET = 48
_MAX_CHARACTERS = 7  # enough for any difference of two 32-bit counts


def encode_edges(edges: native.Edges, num_pixels: int, *, kernel: str | None = None) -> bytes:
    """Encode runs of ones as COCO compressed RLE.

    Args:
        edges: uint32 [2 R], the start of each run in column-major order and its end, ascending; no run touches
            the next.
        num_pixels: height x width of the mask.
        kernel: one of `native.kernels`; None: the best.

    Returns:
        The `counts` string of a COCO RLE object.
    """
    if native.resolve(kernel) != native.NUMPY:
        return native.encode(edges, num_pixels)
    counts = np.diff(edges.astype(np.int64), prepend=0, append=num_pixels)
    if counts[-1] == 0 and len(counts) > 1:
        counts = counts[:-1]  # as cocoapi: no zero run at the end
    return _compress(counts)


def check_bytes(num_bytes: int, *, max_bytes: int = MAX_RLE_BYTES) -> None:
    """Refuse the RLE of one response that would take more than `max_bytes`.

    Raises:
        InputError: it would.
    """
    if num_bytes > max_bytes:
        raise InputError(
            f"'rle' would take {num_bytes} bytes; allowed are {max_bytes}: raise 'score_threshold', or set "
            "'keep_top_k', or 'export_postprocess_mask' to false",
            kind="output_too_large",
        )


def encode_mask(mask: npt.NDArray[np.generic]) -> bytes:
    """Encode a dense mask [H, W] (non-zero is inside) as COCO compressed RLE."""
    column_major = np.asarray(mask).T.reshape(-1) != 0
    edges = np.flatnonzero(np.diff(column_major, prepend=False, append=False))
    return encode_edges(edges.astype(np.uint32), column_major.size)


def decode(
    counts: bytes, height: int, width: int, *, packed: bool = False, kernel: str | None = None
) -> npt.NDArray[np.uint8]:
    """Decode COCO compressed RLE to a mask.

    Args:
        counts: the RLE.
        height: of the mask.
        width: of the mask.
        packed: a bit a pixel, in the order of `np.packbits` along a row, in place of a byte.
        kernel: one of `native.kernels`; None: the best.

    Returns:
        0/1 uint8 [height, width]; packed: uint8 [height, ceil(width / 8)].

    Raises:
        InputError: the string is not RLE, does not cover height x width pixels, or a side is below 1.
    """
    pixels = np.zeros((max(0, height), max(0, packed_width(width) if packed else width)), np.uint8)
    decode_into(pixels, counts, height, width, packed=packed, kernel=kernel)
    return pixels


def packed_width(width: int) -> int:
    """Bytes of a row of a packed mask."""
    return -(-width // 8)


def decode_edges(counts: bytes, height: int, width: int) -> Ints:
    """Decode COCO compressed RLE to the runs of ones, without making the mask.

    Returns:
        int64 [2 R]: the start of each run in column-major order and its end, ascending. Runs touch, or are empty, where
        the RLE has empty counts.

    Raises:
        InputError: the string is not RLE, does not cover height x width pixels, or a side is below 1.
    """
    runs = _runs(counts, height * width)
    if min(height, width) < 1 or runs is None:
        raise _not_rle(height, width)
    return np.cumsum(runs)[: len(runs) // 2 * 2]


def decode_into(
    pixels: npt.NDArray[np.uint8],
    counts: bytes,
    height: int,
    width: int,
    *,
    packed: bool = False,
    kernel: str | None = None,
) -> None:
    """`decode` into the upper left of an array of zeros, whose rows are contiguous; what lies beyond stays zero.

    Raises:
        InputError: as `decode`; what `pixels` then holds is not said.
    """
    decoder = _decode_into if native.resolve(kernel) == native.NUMPY else native.decode_into
    if min(height, width) < 1 or not decoder(pixels, counts, height, width, packed):
        raise _not_rle(height, width)


def _not_rle(height: int, width: int) -> InputError:
    return InputError(f"not the COCO compressed RLE of a mask of {height} x {width} pixels")


def _runs(counts: bytes, num_pixels: int) -> Ints | None:
    """Return the lengths of all runs, zeros first; None where `counts` is not RLE of so many pixels."""
    runs = _decompress(counts)
    if runs is None or not ((runs >= 0) & (runs <= num_pixels)).all() or runs.sum() != num_pixels:
        return None
    return runs


def _decode_into(pixels: npt.NDArray[np.uint8], counts: bytes, height: int, width: int, packed: bool) -> bool:
    runs = _runs(counts, height * width)
    if runs is None:
        return False
    values = np.arange(len(runs), dtype=np.uint8) & 1  # runs of zeros and ones alternate, zeros first
    mask = np.repeat(values, runs).reshape(width, height).T
    pixels[:height, : packed_width(width) if packed else width] = np.packbits(mask, axis=1) if packed else mask
    return True


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


def _decompress(counts: bytes) -> Ints | None:
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - _ASCII_OFFSET
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = (codes & 32) == 0  # the character that ends a value
    ends = np.flatnonzero(last)
    begins = np.concatenate([[0], ends[:-1] + 1])
    position = np.arange(len(codes)) - np.repeat(begins, ends - begins + 1)
    if position.max() >= _MAX_CHARACTERS + 2:
        return None
    values = np.add.reduceat((codes & 31) << (_BITS * position), begins)
    negative = (codes[ends] & 16) != 0
    values -= np.where(negative, np.int64(1) << (_BITS * (position[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
