"""Encode and decode the tensors of an inference in the binary form of KServe v2 over HTTP."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"{name}{bits}": np.dtype(f"{name.lower()}{bits}") for name in ("UINT", "INT") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEAD = 1 << 16  # bytes of an answer's JSON


def zeros(datatype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """Return zeros of a Triton type, for example `FP32`."""
    return np.zeros(shape, _DTYPES[datatype])


def encode(
    inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], *, parameters: Mapping[str, Any], request_id: str
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a request.

    Args:
        inputs: tensors by name; an array of objects holds bytes.
        outputs: names of the requested outputs.
        parameters: request parameters.
        request_id: id of the request; an empty string for none.
    """
    contents = {name: _content(array) for name, array in inputs.items()}
    described = []
    for name, array in inputs.items():
        sizes = {"binary_data_size": len(contents[name])}
        datatype = _NAMES.get(array.dtype, "BYTES")
        described.append({"name": name, "shape": array.shape, "datatype": datatype, "parameters": sizes})
    requested = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    head = json.dumps({"id": request_id, "inputs": described, "outputs": requested, "parameters": parameters}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return b"".join([head, *contents.values()]), headers


def decode(body: bytes) -> Arrays:
    """Return the output tensors of an answer by name; a BYTES tensor is an array of objects.

    Tensors of a type that NumPy does not have, such as BF16, are left out.

    Raises:
        ValueError: the answer cannot be read.
    """
    head, start = json.JSONDecoder().raw_decode(body[:_LONGEST_HEAD].decode("latin-1"))  # a character for each byte
    arrays: Arrays = {}
    try:
        for output in head["outputs"]:
            size, datatype = output["parameters"]["binary_data_size"], output["datatype"]
            content, start = body[start : start + size], start + size
            if datatype == "BYTES":
                arrays[output["name"]] = _strings(content).reshape(output["shape"])
            elif dtype := _DTYPES.get(datatype):
                arrays[output["name"]] = np.frombuffer(content, dtype).reshape(output["shape"])
    except (LookupError, TypeError, struct.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return arrays


def _content(array: npt.NDArray[Any]) -> bytes:
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(word)) + word for word in array.ravel())
    return array.tobytes()


def _strings(content: bytes) -> npt.NDArray[Any]:
    words, start = [], 0
    while start < len(content):
        (size,) = struct.unpack_from("<I", content, start)
        words.append(content[start + 4 : start + 4 + size])
        start += 4 + size
    strings = np.empty(len(words), object)
    strings[:] = words
    return strings
