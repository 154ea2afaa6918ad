"""A result in a file: numpy's npz with an array for each output.

BYTES outputs (`rle`, `segments`) become numpy byte strings: `np.load(path)["rle"]` needs neither pickle nor `m2f`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from m2f.contract import OUTPUTS
from m2f.errors import M2FError
from m2f_client.answer import Array

MAX_BYTES = 1 << 30
"""Default limit of `load`."""

_DATATYPES = {tensor.name: tensor.datatype for tensor in OUTPUTS}


def save(outputs: Mapping[str, Array], path: str | os.PathLike[str]) -> None:
    """Write outputs to a compressed file. An existing file is overwritten.

    Raises:
        M2FError: the file cannot be written.
    """
    arrays = {name: _plain(array) for name, array in outputs.items()}
    try:
        with Path(path).open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise M2FError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error


def load(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> dict[str, Array]:
    """Read a file that `save` wrote: the same arrays, of the same types.

    Args:
        path: the file.
        max_bytes: largest size of all arrays together; a file can be compressed a thousandfold.

    Raises:
        M2FError: the file cannot be read, was not written by `save`, or holds more than `max_bytes`.
    """
    try:
        with Path(path).open("rb") as file, np.load(file) as archive:
            _check_room(path, sum(member.file_size for member in archive.zip.infolist()), max_bytes)
            arrays = {name: archive[name] for name in archive.files}
    except M2FError:
        raise
    except OSError as error:
        raise M2FError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise a dozen kinds, MemoryError among them
        raise M2FError(f"{os.fspath(path)} is not a result that Result.save wrote: {error}") from error
    unknown = [name for name in arrays if name not in _DATATYPES]
    if unknown:
        raise M2FError(f"{os.fspath(path)} is not a result that Result.save wrote: no output is named '{unknown[0]}'")
    for name, array in arrays.items():
        if array.dtype.kind not in ("S" if _DATATYPES[name] == "BYTES" else "biuf"):
            raise M2FError(f"{os.fspath(path)} is not a result that Result.save wrote: '{name}' is {array.dtype}")
    size = arrays.get("size", np.ones(2))
    if size.shape != (2,) or not (size >= 1).all():
        raise M2FError(f"{os.fspath(path)} is not a result that Result.save wrote: 'size' is {size.tolist()}")
    return {name: array.astype(object) if _DATATYPES[name] == "BYTES" else array for name, array in arrays.items()}


def _plain(array: Array) -> Array:
    # numpy's byte strings lose zero bytes at their ends; neither RLE nor JSON ends in zero bytes
    return array.astype(np.bytes_) if array.dtype == object else array


def _check_room(path: str | os.PathLike[str], needed: int, max_bytes: int) -> None:
    if needed > max_bytes:
        raise M2FError(
            f"{os.fspath(path)} holds {needed} bytes; allowed are {max_bytes}: load(..., max_bytes={needed})"
        )
