"""Read the files of weights that detectron2 writes: `.pth` of `torch.save`, and pickles of numpy arrays (`.pkl`).

A pickle is a program. Only what builds arrays and plain values is executed; anything else is refused before it runs.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from m2f_export.export_errors import ExportError, reason
from m2f_export.files import check_file
from m2f_export.sources.checkpoint import is_pickle, read_checkpoint
from m2f_export.sources.detectron2_names import with_current_names

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")  # opcodes that number a value


def read_detectron2_checkpoint(path: Path) -> dict[Any, Any]:
    """Read weights as `DetectionCheckpointer` does, under the names of today's code.

    Raises:
        ExportError: the file cannot be read, holds no weights, or holds code.
    """
    contents = _read_pickle(path) if is_pickle(check_file(path)) else read_checkpoint(path)
    weights = contents.get("model")  # beside it there may be an optimizer, and averages
    return with_current_names(weights if isinstance(weights, Mapping) else contents)


def _read_pickle(path: Path) -> Mapping[Any, Any]:
    """Read a pickle of numpy arrays; they become tensors."""
    try:
        with path.open("rb") as file:
            _check_opcodes(file, path.stat().st_size)
            file.seek(0)
            contents = _Unpickler(file, encoding="latin1").load()
        if isinstance(contents, Mapping):
            return _as_tensors(contents)
    except Exception as error:  # a pickle is a program: it may raise anything
        raise ExportError(f"{path} is not a pickle of weights: {reason(error)}") from error
    raise ExportError(f"{path} holds no weights, but a {type(contents).__name__}; allowed: a dictionary of arrays")


def _check_opcodes(file: IO[bytes], size: int) -> None:
    """Refuse numbers of values beyond the size of the file: the unpickler takes memory for every number below."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in _PUTS and int(argument or 0) > size:
            raise ValueError(f"it numbers a value {argument}, in {size} bytes")


class _Unpickler(pickle.Unpickler):
    """Unpickles arrays, numbers, texts and containers of them."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, if it builds an array or a dictionary."""
        module = module.replace("numpy._core", "numpy.core")  # numpy 2's name
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it has {module}.{name}; allowed: dictionaries of numpy arrays")
        return _ALLOWED[module, name]


def _reconstruct(*_: object) -> npt.NDArray[Any]:
    """Return the empty array that numpy's pickles fill with their next instruction, whatever they ask for."""
    return np.empty(0, np.int8)


def _from_buffer(buffer: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> npt.NDArray[Any]:
    return np.frombuffer(buffer, dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: np.dtype[Any], value: bytes) -> Any:
    return np.frombuffer(value, dtype, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Return the bytes that Python 2's pickles, and protocol 2, write as a text."""
    if encoding != "latin1":
        raise ValueError(f"it has bytes as {encoding!r}; allowed: 'latin1'")
    return text.encode("latin1")


_NOT_CALLED = object()  # named by pickles of arrays, which hand it to `_reconstruct`
_ALLOWED: dict[tuple[str, str], Callable[..., Any] | object] = {
    ("numpy", "ndarray"): _NOT_CALLED,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}


def _as_tensors(contents: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return nested dictionaries with tensors in place of arrays; arrays of anything but numbers stay."""
    return {
        key: _as_tensors(value)
        if isinstance(value, Mapping)
        else torch.from_numpy(np.array(value))
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
        else value
        for key, value in contents.items()
    }
