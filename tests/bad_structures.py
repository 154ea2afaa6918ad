"""Requests whose structure alone ends Triton 2.51, ends a model's process, or occupies it for seconds.

Only the front may get them: no server of other tests, but for `SHAPES`, which a model of fixed size refuses.
`docs/triton-faults.md` explains each fault.
"""

import json
import struct

import numpy as np
from bad_inputs import GOOD
from kserve import image_input
from wire import Post, message

from m2f.contract import OUTPUTS, PUBLIC_MODEL, PUBLIC_TENSOR_MODEL

NOT_SERVED = "'classification' is not served here; allowed: .*binary_data"
NESTED = "nested deeper than 16"
MANY = "more than 200 tensors, parameters and members"
SHAPE = "a shape has more elements than the request has bytes"
TWICE = "asked for twice"
WHOLE = "a shape must be a few whole numbers"
FIELD = "a field that a ModelInferRequest does not have"
NO_ROWS = {"score_threshold": 1.0}
_RAW = struct.pack("<I", len(GOOD)) + GOOD
_TENSORS = {
    "input": np.zeros((1, 256, 256, 3), np.uint8),
    "img_shape": np.array([[256, 200]], np.int32),
    "ori_shape": np.array([[300, 240]], np.int32),
}


def post(text, data=_RAW, model=PUBLIC_MODEL):
    """JSON, then tensors."""
    head = text if isinstance(text, bytes) else json.dumps(text).encode()
    return Post(head + data, (("Inference-Header-Content-Length", str(len(head))),), f"/v2/models/{model}/infer")


def whole(outputs=({"name": "num_instances"},), image=None, **top):
    """The JSON of a good request, with changes to its image."""
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(_RAW)}}
    return {"inputs": [{**tensor, **(image or {})}], "outputs": list(outputs), **top}


def classified(output, count, binary=True, **parameters):
    """A request over HTTP for the classification of an output."""
    asked = {"name": output, "parameters": {"classification": count, "binary_data": binary}}
    return post(whole([asked], parameters=parameters))


def classified_grpc(output, model=PUBLIC_MODEL, **kind):
    """The same over gRPC; `kind`: for example `int64_param=3`."""
    request = message(model, image_input(GOOD), [output])
    for name, value in kind.items():
        setattr(request.outputs[0].parameters["classification"], name, value)
    return request


def tensor_post(name, shape, data=None):
    """A request over HTTP to the tensor model, one input of which has a shape of its own."""
    inputs, tail = [], b""
    for own, array in _TENSORS.items():
        content = array.tobytes() if own != name or data is None else data
        kind = {"uint8": "UINT8", "int32": "INT32"}[str(array.dtype)]
        sides = list(array.shape) if own != name else shape
        size = {"binary_data_size": len(content)}
        inputs.append({"name": own, "shape": sides, "datatype": kind, "parameters": size})
        tail += content
    return post({"inputs": inputs, "outputs": [{"name": "num_instances"}]}, tail, PUBLIC_TENSOR_MODEL)


def with_shape(name, shape, data=None):
    """The same over gRPC, to the model that has the input."""
    model = PUBLIC_MODEL if name == "image" else PUBLIC_TENSOR_MODEL
    request = message(model, image_input(GOOD) if name == "image" else _TENSORS, ["num_instances"])
    for place, tensor in enumerate(request.inputs):
        if tensor.name == name:
            del tensor.shape[:]
            tensor.shape.extend(shape)
            if data is not None:
                request.raw_input_contents[place] = data
    return request


def field(number, content, tag=None):
    """A field of a message, as bytes; `tag`: other bytes than the shortest for its number."""
    return (tag or bytes([number * 8 + 2])) + varint(len(content)) + content


def varint(value, filled=0):
    """A number as protobuf writes it, with this many empty bytes behind it."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)] + [0] * filled
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


_KEY = b"classification"
_VALUE = field(2, bytes([0x10, 3]))  # int64_param: 3
_IMAGE = message(PUBLIC_MODEL, image_input(GOOD)).SerializeToString()


def asked(entry):
    """A message for `rle` whose output has these bytes as a parameter."""
    return _IMAGE + field(6, field(1, b"rle") + field(2, entry))


def other_model(*names):
    request = message(PUBLIC_MODEL, image_input(GOOD), ["num_instances"])
    return request.SerializeToString() + b"".join(field(1, name.encode()) for name in names)


def many(count):
    return {f"p{number}": 1 for number in range(count)}


def many_grpc(count):
    request = message(PUBLIC_MODEL, image_input(GOOD), ["num_instances"])
    for name in many(count):
        request.parameters[name].int64_param = 1
    return request


CLASSIFIED = whole([{"name": "rle", "parameters": {"classification": 3}}])

CLASSIFICATION = {
    **{f"{t.name} over HTTP": (classified(t.name, 3), NOT_SERVED) for t in OUTPUTS},
    **{f"{t.name} over gRPC": (classified_grpc(t.name, int64_param=3), NOT_SERVED) for t in OUTPUTS},
    **{f"no rows of {name}": (classified(name, 3, **NO_ROWS), NOT_SERVED) for name in ("scores", "boxes", "masks")},
    "no rows, as JSON": (classified("scores", 3, False, **NO_ROWS), NOT_SERVED),
    **{f"of {count}": (classified("rle", count), NOT_SERVED) for count in (0, -1, 2**32, 2**63, "3", 1.5, None)},
    **{f"of {n}, gRPC": (classified_grpc("rle", int64_param=n), NOT_SERVED) for n in (0, -1, 2**32, 2**63 - 1)},
    "of text, gRPC": (classified_grpc("rle", string_param="3"), NOT_SERVED),
    "in an input": (post(whole(image={"parameters": {"classification": 3, "binary_data_size": 1}})), NOT_SERVED),
    "with an escape in its name": (
        post(json.dumps(CLASSIFIED).replace("classification", r"classificatio\u006e").encode()),
        "a member is not served here",
    ),
    "hidden by a second member": (
        post(json.dumps(CLASSIFIED).replace("3}", '3}, "parameters": {}').encode()),
        NOT_SERVED,
    ),
    "behind quotes": (
        post({"id": '"}]}\\', **CLASSIFIED}),
        NOT_SERVED,
    ),
    "its value first": (asked(_VALUE + field(1, _KEY)), NOT_SERVED),
    "its key twice": (asked(field(1, _KEY) + field(1, b"binary_data") + _VALUE), NOT_SERVED),
    "its key's tag in three bytes": (asked(field(1, _KEY, b"\x8a\x80\x00") + _VALUE), NOT_SERVED),
    "its key's tag with bits that get lost": (asked(field(1, _KEY, b"\x8a\x80\x80\x80\x70") + _VALUE), FIELD),
    "its key's length in four bytes": (asked(b"\x0a" + varint(len(_KEY), 3) + _KEY + _VALUE), NOT_SERVED),
}  # fmt: skip

JSON = {
    "150,000 arrays": (Post(b'{"inputs":' + b"[" * 150_000 + b"]" * 150_000 + b"}"), NESTED),
    "150,000 arrays, without an end": (Post(b'{"inputs":' + b"[" * 150_000), NESTED),
    "150,000 arrays alone": (Post(b"[" * 150_000), NESTED),
    "150,000 objects": (Post(b'{"id":' + b'{"id":' * 150_000 + b"1" + b"}" * 150_001), NESTED),
    "150,000 objects in a parameter": (
        Post(b'{"parameters":{"a":' + b'{"id":' * 150_000 + b"1" + b"}" * 150_002),
        NESTED,
    ),
    "in binary requests too": (post(b'{"parameters":{"a":' + b"[" * 150_000), NESTED),
    "50,000 arrays of data": (
        Post(json.dumps(whole(image={"data": "X"})).replace('"X"', "[" * 50_000 + '"a"' + "]" * 50_000).encode()),
        NESTED,
    ),
    "a shape of arrays": (post(whole(image={"shape": [[1], 1]})), WHOLE),
    "a string without an end": (Post(b'{"inputs": "' + b"a" * 1000), "has no end"),
    "much of it": (Post(b'{"inputs": [' + b"0," * 50_000 + b"0]}"), "send tensors as binary data"),
    "backslashes": (Post(b'{"inputs": "' + b"\\" * 100_000 + b'"}'), "send tensors as binary data"),
    "quotes": (Post(b'{"inputs": "' + b'\\"' * 100_000 + b'"}'), "send tensors as binary data"),
    **{
        f"length of {length!r}": (Post(b"{}", (("Inference-Header-Content-Length", length),)), "number of bytes")
        for length in ("-1", "3", "2x", "0x2", "", str(2**32), str(2**64), "1, 2")
    },
}

COUNTS = {
    "50,000 parameters": (post(whole(parameters=many(50_000))), MANY),
    "300 parameters": (post(whole(parameters=many(300))), MANY),
    "300 parameters, gRPC": (many_grpc(300), MANY),
    "one parameter 300 times": (post(b'{"inputs":[],"parameters":{"a":1' + b',"a":1' * 300 + b"}}"), MANY),
    "parameters of an output": (post(whole([{"name": "rle", "parameters": many(300)}])), "'p0' is not served here"),
    "parameters of an input": (post(whole(image={"parameters": many(300)})), "'p0' is not served here"),
    "shared memory": (
        post(whole([{"name": "rle", "parameters": {"shared_memory_region": "a"}}])),
        "'shared_memory_region' is not served here",
    ),
    "300 outputs": (post(whole([{"name": f"rle{number}"} for number in range(300)])), MANY),
    "an output twice": (post(whole([{"name": "rle"}, {"name": "size"}, {"name": "rle"}])), TWICE),
    "an output in other letters": (post(json.dumps(whole([{"name": "X"}])).replace("X", r"rl\u0065").encode()), TWICE),
    "an output twice, gRPC": (message(PUBLIC_MODEL, image_input(GOOD), ["rle", "rle"]), TWICE),
    "300 inputs": (post(whole(image={}) | {"inputs": [{"name": "image"}] * 300}), MANY),
    "a million tensors of no bytes": (_IMAGE + field(7, b"") * 1_000_000, MANY),
}  # fmt: skip

_SHAPES = {
    "two negative sides": [1, -256, -256, 3],
    "a product of 2^64": [1, 2**32, 2**32, 3],
    "a product that comes around": [1, 2**61 + 256, 256, 3],
    "a side of 2^62": [1, 2**62, 4, 3],
    "a side of 2^31": [1, 2**31, 1, 3],
    "a side of 2^63 - 1": [1, 2**63 - 1, 256, 3],
    "no rows of 2^62": [1, 0, 2**62, 3],
    "a batch of 2^32 + 1": [2**32 + 1, 256, 256, 3],
    "a negative batch": [-1, 256, 256, 3],
}
SHAPES = {
    **{f"{name}, gRPC": (with_shape("input", shape), SHAPE) for name, shape in _SHAPES.items()},
    **{f"{name}, no bytes, gRPC": (with_shape("input", shape, b""), SHAPE) for name, shape in _SHAPES.items()},
    **{name: (tensor_post("input", shape, b""), WHOLE if min(shape) < 0 else SHAPE) for name, shape in _SHAPES.items()},
    **{
        f"image of {batch} rows, gRPC": (with_shape("image", [batch, 1]), SHAPE)
        for batch in (-1, 2**32 + 1, 2**63 - 1, -(2**63))
    },
    **{f"image of {batch} rows": (post(whole(image={"shape": [batch, 1]})), SHAPE) for batch in (2**32 + 1, 2**64)},
    "sizes of 2^62 rows": (tensor_post("img_shape", [2**62, 2]), SHAPE),
    "sizes of 2^62 rows, gRPC": (with_shape("ori_shape", [2**62, 2]), SHAPE),
    "a shape of a thousand sides": (tensor_post("input", [1] * 1000), WHOLE),
    "a shape of fractions": (tensor_post("input", [1, 1.5e30, 256, 3]), WHOLE),
}

MODELS = {
    **{
        f"mask2former_{step}": (message(f"mask2former_{step}", image_input(GOOD)), "this model is not served here")
        for step in ("preprocess", "engine", "postprocess", "masks", "raw")
    },
    "named twice": (other_model("mask2former_raw"), "this model is not served here"),
    "named twice, the public one last": (other_model("mask2former_raw", PUBLIC_MODEL), "this model is not served here"),
    "a field that the protocol lacks": (_IMAGE + field(15, b"a"), FIELD),
    "a field that ends too late": (_IMAGE + b"\x3a\x7f", "ends within a field"),
    "a group": (_IMAGE + b"\x3b", "has a field|without an end"),
}
