"""Tensors as KServe v2 has them over HTTP: against tritonclient's own reading and writing."""

import json

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype

from m2f_server.tensors import decode, encode, zeros

ARRAYS = {
    "image": np.array([[b"abc"], [b""]], object),
    "input": np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3),
    "shape": np.array([[3, 4]], np.int32),
    "floats": np.array([[0.5, -1]], np.float32),
    "nothing": np.zeros((1, 0, 4), np.float32),
}


def test_a_request_is_tritonclients():
    tensors = [InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)) for name, array in ARRAYS.items()]
    for tensor, array in zip(tensors, ARRAYS.values(), strict=True):
        tensor.set_data_from_numpy(array)
    wanted, length = InferenceServerClient.generate_request_body(
        tensors, outputs=[InferRequestedOutput("scores")], request_id="7", parameters={"keep_top_k": 3}
    )
    body, headers = encode(ARRAYS, ["scores"], parameters={"keep_top_k": 3}, request_id="7")
    ours = int(headers["Inference-Header-Content-Length"])
    assert json.loads(body[:ours]) == json.loads(wanted[:length])
    assert body[ours:] == wanted[length:]


def test_an_answer_is_read():
    body, headers = encode(ARRAYS, [], parameters={}, request_id="")
    length = int(headers["Inference-Header-Content-Length"])
    head = json.loads(body[:length])
    unknown = {"name": "half", "datatype": "BF16", "shape": [1], "parameters": {"binary_data_size": 2}}
    answer = json.dumps({"outputs": [*head["inputs"], unknown]}).encode() + body[length:] + b"\xff\xff"
    got = decode(answer)
    assert list(got) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)
    theirs = InferenceServerClient.parse_response_body(answer, header_length=len(answer) - len(body) + length - 2)
    np.testing.assert_array_equal(got["floats"], theirs.as_numpy("floats"))


@pytest.mark.parametrize(
    "output", [{}, {"name": "a", "datatype": "FP32", "shape": [9], "parameters": {"binary_data_size": 4}}]
)
def test_an_answer_that_is_none(output):
    with pytest.raises(ValueError, match=r"KeyError|reshape"):
        decode(json.dumps({"outputs": [output]}).encode() + bytes(4))
    with pytest.raises(ValueError, match="Expecting value"):
        decode(b"<html>")


def test_zeros_are_of_a_triton_type():
    assert zeros("FP32", [1, 2]).dtype == np.float32
    assert zeros("UINT8", [1, 2]).shape == (1, 2)
