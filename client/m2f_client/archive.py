"""A result in a file: numpy's npz, an array for each output.

BYTES outputs (`rle`, `segments`) are numpy byte strings there: `np.load(path)["rle"]` needs neither pickle nor this
package.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.contract import OUTPUTS
from m2f_client.errors import M2FError

Array = npt.NDArray[Any]

_DATATYPES = {tensor.name: tensor.datatype for tensor in OUTPUTS}


def save(outputs: Mapping[str, Array], path: str | os.PathLike[str]) -> None:
    """Write outputs to a file, compressed. An existing one is overwritten.

    Raises:
        M2FError: it cannot be written.
    """
    arrays = {name: _plain(array) for name, array in outputs.items()}
    try:
        with Path(path).open("wb") as file:  # a file, since numpy would append .npz to a name
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise M2FError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error


def load(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read what `save` wrote: the same arrays, of the same types.

    Raises:
        M2FError: it cannot be read, or is something else.
    """
    try:
        with Path(path).open("rb") as file, np.load(file) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise M2FError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    except (AttributeError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise M2FError(f"{os.fspath(path)} is not a result that Result.save wrote: {error}") from error
    unknown = [name for name in arrays if name not in _DATATYPES]
    if unknown:
        raise M2FError(f"{os.fspath(path)} is not a result that Result.save wrote: no output is named '{unknown[0]}'")
    return {name: array.astype(object) if _DATATYPES[name] == "BYTES" else array for name, array in arrays.items()}


def _plain(array: Array) -> Array:
    # byte strings of numpy lose zeros at their ends, of which neither RLE nor JSON has any
    return array.astype(np.bytes_) if array.dtype == object else array
