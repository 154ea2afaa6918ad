"""COCO run-length encoding: column-major runs, and the compressed string that `pycocotools` reads.

The string is that of cocoapi: `rleToString` and `rleFrString` in common/maskApi.c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError
from m2f.geometry import Ints
from m2f.kernels import BEST, Kernel
from m2f.limits import MAX_RLE_BYTES
from m2f.numpy_kernel import decode_runs


def check_bytes(num_bytes: int, *, max_bytes: int = MAX_RLE_BYTES) -> None:
    """Refuse the RLE of one response that would take more than `max_bytes`.

    Raises:
        InputError: `num_bytes` is more than `max_bytes`.
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
    return BEST.encode(edges.astype(np.uint32), column_major.size)


def decode(
    counts: bytes, height: int, width: int, *, packed: bool = False, kernel: Kernel = BEST
) -> npt.NDArray[np.uint8]:
    """Decode COCO compressed RLE to a mask [height, width].

    Args:
        counts: the RLE.
        height: pixels of a column of the mask.
        width: pixels of a row of the mask.
        packed: one bit a pixel, in the order of `np.packbits` along a row, in place of one byte.
        kernel: decodes the RLE.

    Returns:
        0/1 uint8 [height, width]; packed: uint8 [height, ceil(width / 8)].

    Raises:
        InputError: `counts` is not RLE, does not cover height x width pixels, or a side is below 1.
    """
    pixels = np.zeros((max(0, height), max(0, packed_width(width) if packed else width)), np.uint8)
    decode_into(pixels, counts, height, width, packed=packed, kernel=kernel)
    return pixels


def packed_width(width: int) -> int:
    """Return the bytes of a row of a packed mask."""
    return -(-width // 8)


def decode_edges(counts: bytes, height: int, width: int) -> Ints:
    """Decode COCO compressed RLE of a mask [height, width] to its runs of ones, without making the mask.

    Returns:
        int64 [2 R]: start and end of each run in column-major order, ascending. Runs touch, or are empty, where the RLE
        has empty counts.

    Raises:
        InputError: `counts` is not RLE, does not cover height x width pixels, or a side is below 1.
    """
    runs = decode_runs(counts, height * width)
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
    kernel: Kernel = BEST,
) -> None:
    """Decode RLE as `decode` does, into the upper left of a uint8 array of zeros, whose rows are contiguous.

    Raises:
        InputError: as `decode`; the content of `pixels` is then undefined.
    """
    if min(height, width) < 1 or not kernel.decode_into(pixels, counts, height, width, packed=packed):
        raise _not_rle(height, width)


def _not_rle(height: int, width: int) -> InputError:
    return InputError(f"not the COCO compressed RLE of a mask of {height} x {width} pixels")
