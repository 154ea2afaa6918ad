"""Checks of a server's answer, before it becomes a `Result`: the server may be broken, or not ours."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.contract import OUTPUTS, TensorSpec
from m2f.limits import MAX_SIDE
from m2f.rle import packed_width
from m2f_client.client_errors import ServerError

Array = npt.NDArray[Any]

ROW_OUTPUTS = ("scores", "labels", "boxes", "areas", "queries", "rle", "masks", "packed_masks")
"""Outputs with a row for each instance. In a batch they are padded, and `num_instances` counts the real rows."""

LABEL_MAPS = ("panoptic", "semantic")
"""Outputs with a number for each pixel. In a batch they are padded, and `size` is the real size."""

DENSE_MASKS = ("masks", "packed_masks")
"""Outputs with pixels for each row. They have no rows at all if the server made no masks."""

MAX_PIXELS_SEEN = 1 << 28
"""Largest image that an answer may be about, in pixels. The server reads with Pillow, whose limit is 179 million."""

PLAIN = {"accept-encoding": "identity"}
"""HTTP headers that ask for an answer without compression."""

_MAX_LABEL = (1 << 16) - 1  # COCO files have a row for each class up to the largest label found
_TENSORS = {tensor.name: tensor for tensor in OUTPUTS}
_DTYPES = {"FP32": np.float32, "INT32": np.int32, "UINT8": np.uint8, "BYTES": np.object_}
# what tritonclient, numpy and json raise if an answer breaks the protocol or the contract
_UNREADABLE = (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError, struct.error)


@contextmanager
def readable() -> Iterator[None]:
    """Raise ServerError if the block cannot read an answer. The block must do nothing else."""
    try:
        yield
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ServerError(f"the server's answer cannot be read ({reason})") from error


def check(outputs: Mapping[str, Array]) -> None:
    """Check the outputs of one image, padding included, against the contract and against each other.

    Raises:
        ServerError: a type or shape differs from the contract, or rows or pixels are missing.
    """
    for name, array in outputs.items():
        if name in _TENSORS:
            _check_tensor(_TENSORS[name], array)
    _check_rows(outputs)
    if "size" in outputs:
        height, width = outputs["size"].tolist()
        check_size(height, width)
        _check_pixels(outputs, height, width)


def check_size(height: int, width: int, *, max_pixels: int = MAX_PIXELS_SEEN) -> None:
    """Check the size of an image before masks of that size are allocated.

    Raises:
        ServerError: the size is below 1 x 1, or above the largest side or number of pixels.
    """
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and height * width <= max_pixels):
        raise ServerError(
            f"the server says that the image has {height} x {width} pixels; possible are {max_pixels}, and 1 to "
            f"{MAX_SIDE} along a side"
        )


def _check_tensor(tensor: TensorSpec, array: Array) -> None:
    fits = array.ndim == len(tensor.dims) and all(
        want in (-1, got) for want, got in zip(tensor.dims, array.shape, strict=True)
    )
    if array.dtype != _DTYPES[tensor.datatype] or not fits:
        found = f"{array.dtype} {list(array.shape)}"
        raise ServerError(f"'{tensor.name}' from the server is {found}; expected {tensor.datatype} {list(tensor.dims)}")
    if tensor.datatype == "BYTES" and not all(isinstance(text, bytes) for text in array.flat):
        raise ServerError(f"'{tensor.name}' from the server is not of bytes")
    if tensor.name == "rle" and not all(counts.isascii() for counts in array):
        raise ServerError("'rle' from the server is not ASCII")
    if tensor.name == "labels" and array.size and array.max() > _MAX_LABEL:
        raise ServerError(f"'labels' from the server go up to {array.max()}; possible are {_MAX_LABEL}")


def _check_rows(outputs: Mapping[str, Array]) -> None:
    rows = {name: len(outputs[name]) for name in ROW_OUTPUTS if name in outputs}
    rows = {name: count for name, count in rows.items() if count or name not in DENSE_MASKS}
    count = int(outputs["num_instances"][0]) if "num_instances" in outputs else max(rows.values(), default=0)
    if count < 0:
        raise ServerError(f"the server says that there are {count} instances")
    for name, found in rows.items():
        if found < count:
            raise ServerError(f"'{name}' from the server has {found} rows; there are {count} instances")


def _check_pixels(outputs: Mapping[str, Array], height: int, width: int) -> None:
    for name in (*DENSE_MASKS, *LABEL_MAPS):
        if name not in outputs or (name in DENSE_MASKS and not len(outputs[name])):
            continue
        needed = (height, packed_width(width) if name == "packed_masks" else width)
        found = outputs[name].shape[-2:]
        if found[0] < needed[0] or found[1] < needed[1]:
            raise ServerError(f"'{name}' from the server is {list(found)}, too small for {height} x {width} pixels")


def refuse_encoded(encoding: str | None, asked: str) -> None:
    """Refuse a compressed answer that was not asked for: half a megabyte can unpack to a gigabyte.

    Args:
        encoding: the answer's Content-Encoding.
        asked: the request's Accept-Encoding.

    Raises:
        ServerError: the answer is compressed, and the request did not allow that.
    """
    if encoding is not None and encoding not in asked:
        raise ServerError(f"the server's answer is compressed ({encoding!r}), which was not asked for")
