"""Bodies that are no requests, by name, as bytes of one protocol."""

import gzip
import json
import struct
from dataclasses import dataclass, replace

import numpy as np
from bad_inputs import GOOD
from kserve import image_input
from wire import Post, message

from m2f.contract import PUBLIC_MODEL

UNPARSED = "failed to parse the request JSON"
NOT_AN_IMAGE = "allowed formats: JPEG, PNG, WebP"
_DATA = struct.pack("<I", len(GOOD)) + GOOD  # the tensor `image`
_WHOLE = len(_DATA)


@dataclass(frozen=True)
class Wire:
    """What only one protocol can say: a `Post`, a message of gRPC, or bytes in its place."""

    sent: object
    reason: str | None


def _json(changes=None, **top):
    """A request whose tensors are all in the JSON."""
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": ["aGVsbG8="], **(changes or {})}
    whole = {"inputs": [tensor], "outputs": [{"name": "num_instances"}], **top}
    return Post(json.dumps({key: value for key, value in whole.items() if value is not None}).encode())


def _raw(body, *headers, path="/v2/models/mask2former/infer"):
    return Post(body if isinstance(body, bytes) else body.encode(), headers, path)


def _parameter(text):
    """A good request with a parameter whose value is JSON that no client library writes."""
    return _binary(f'{_image_header(_WHOLE)[:-1]}, "parameters": {{"score_threshold": {text}}}}}')


def _not_utf8():
    good = _parameter('"high"')
    return replace(good, body=good.body.replace(b'"high"', b'"\xffigh"', 1))


def _binary(header, size=None, data=None):
    """JSON, then tensors, with a header that says where the JSON ends."""
    length = str(len(header) if size is None else size)
    return Post(header.encode() + (_DATA if data is None else data), (("Inference-Header-Content-Length", length),))


def _image_header(binary_data_size):
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": binary_data_size},
    }
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "num_instances"}]})


_BOMB = gzip.compress(bytes(1 << 26))

HTTP = {
    "empty body": Wire(_raw(b""), "the image is empty"),
    "body of text": Wire(_raw("hello"), UNPARSED),
    "body of nulls": Wire(_raw(bytes(1000)), UNPARSED),
    "json cut": Wire(_raw(_json().body[:-5]), UNPARSED),
    "json array": Wire(_raw("[]"), "parse 'inputs'"),
    "json number": Wire(_raw("1e400"), UNPARSED),
    "json nested 100 deep": Wire(_raw("[" * 100 + "]" * 100), "parse 'inputs'"),
    "json not utf-8": Wire(_raw(b'{"inputs": [{"name": "\xff\xfe"}]}'), "must set only one of"),
    "json of one key twice": Wire(_raw('{"inputs": [], "inputs": []}'), "expected 1 inputs but got 0"),
    "inputs missing": Wire(_json(inputs=None), "parse 'inputs'"),
    "inputs empty": Wire(_json(inputs=[]), "expected 1 inputs but got 0"),
    "inputs an object": Wire(_json(inputs={"image": 1}), "parse 'inputs'"),
    "inputs of null": Wire(_json(inputs=[None]), "must set only one of"),
    "input twice": Wire(
        _json(inputs=[{"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}] * 2),
        "'image' already exists",
    ),
    "outputs a number": Wire(_json(outputs=7), "parse 'outputs'"),
    "shape missing": Wire(_json({"shape": None}), "parse 'shape'"),
    "shape negative": Wire(_json({"shape": [-1, 1]}), "parse 'shape'"),
    "shape of zero": Wire(_json({"shape": [0, 1], "data": []}), "expected 1 string elements .*, got 0"),
    "shape of text": Wire(_json({"shape": ["1", "1"]}), "parse 'shape'"),
    "shape of fractions": Wire(_json({"shape": [1.5, 1]}), "parse 'shape'"),
    "shape whose product overflows": Wire(_json({"shape": [2**33, 2**33]}), "unexpected shape"),
    "shape of a thousand dimensions": Wire(_json({"shape": [1] * 1000}), "unexpected shape"),
    "datatype nobody knows": Wire(_json({"datatype": "IMAGE"}), "invalid datatype"),
    "data missing": Wire(_json({"data": None}), "parse 'data'"),
    "data a number": Wire(_json({"data": 5}), "parse 'data'"),
    "data of numbers": Wire(_json({"data": [5]}), "parse JSON bytes array"),
    "data of too many": Wire(_json({"data": ["a", "b"]}), "string elements 2"),
    "data nested": Wire(_json({"data": [[[["a"]]]]}), NOT_AN_IMAGE),
    "data in base64": Wire(_json(), NOT_AN_IMAGE),
    "parameter of 10^400": Wire(_parameter("1" + "0" * 400), "Number too big"),
    "parameter of 1e400": Wire(_parameter("1e400"), "Number too big"),
    "parameter nan": Wire(_parameter("NaN"), "'score_threshold' must be .*; got nan"),
    "parameter null": Wire(_parameter("null"), "'score_threshold' has invalid type"),
    "parameter an array": Wire(_parameter("[0.5]"), "'score_threshold' has invalid type"),
    "parameter an object": Wire(_parameter('{"a": {"b": 1}}'), "'score_threshold' has invalid type"),
    "parameter not utf-8": Wire(_not_utf8(), "parameters cannot be read: 'utf-8' codec"),
    "parameters nested 100 deep": Wire(_parameter("[" * 100 + "]" * 100), "'score_threshold' has invalid type"),
    "tensor shorter than it says": Wire(_binary(_image_header(_WHOLE + 1)), "expecting 1 additional bytes"),
    "tensor longer than it says": Wire(_binary(_image_header(_WHOLE), data=bytes(_WHOLE + 9)), "additional input data"),
    "tensor of negative size": Wire(_binary(_image_header(-1)), "parse 'binary_data_size'"),
    "tensor of 2^63 bytes": Wire(_binary(_image_header(2**63)), "expecting 9223372036854767091 additional bytes"),
    "tensor of 2^64 bytes": Wire(_binary(_image_header(2**64)), "parse 'binary_data_size'"),
    "string longer than its tensor": Wire(
        _binary(_image_header(_WHOLE), data=struct.pack("<I", 2**32 - 1) + GOOD),
        "string of length 4294967295",
    ),
    "string shorter than its tensor": Wire(
        _binary(_image_header(_WHOLE), data=struct.pack("<I", 3) + GOOD), "string elements 2"
    ),
    "json length of zero": Wire(_binary(_image_header(_WHOLE), size=0), "allowed formats"),
    "json length too short": Wire(_binary(_image_header(_WHOLE), size=10), UNPARSED),
    "json length beyond the body": Wire(_binary(_image_header(_WHOLE), size=10**6), "header size should be in range"),
    "json length negative": Wire(_binary(_image_header(_WHOLE), size=-1), "header size should be in range"),
    "json length of 2^64": Wire(_binary(_image_header(_WHOLE), size=2**64), "header size should be in range"),
    "json length of text": Wire(_binary(_image_header(_WHOLE), size="ten"), "allowed formats"),
    "gzip that is none": Wire(_raw("hello", ("Content-Encoding", "gzip")), "the image is empty"),
    "gzip bomb as body": Wire(_raw(_BOMB, ("Content-Encoding", "gzip")), UNPARSED),
    "encoding nobody knows": Wire(_raw("hello", ("Content-Encoding", "br")), "Unsupported compression type"),
    "version nobody knows": Wire(Post(b"{}", path="/v2/models/mask2former/versions/99/infer"), "unknown model"),
    "version of text": Wire(Post(b"{}", path="/v2/models/mask2former/versions/x/infer"), "Not Found"),
    "path nobody knows": Wire(Post(b"{}", path="/v2/models/mask2former/nothing"), "Not Found"),
    "path of percent signs": Wire(Post(b"{}", path="/v2/models/%00%ff%2e%2e/infer"), "unknown model"),
}


def _message(change=None):
    request = message(PUBLIC_MODEL, image_input(GOOD), ["num_instances"])
    if change:
        change(request)
    return request


def _input(**fields):
    """Fields of the input, set."""

    def change(request):
        for name, value in fields.items():
            if name == "shape":
                del request.inputs[0].shape[:]
                request.inputs[0].shape.extend(value)
            else:
                setattr(request.inputs[0], name, value)

    return change


def _threshold(**kind):
    """`score_threshold` as a kind of number."""

    def change(request):
        for name, value in kind.items():
            setattr(request.parameters["score_threshold"], name, value)

    return change


def _contents(*raw):
    """Other bytes for the tensors."""

    def change(request):
        del request.raw_input_contents[:]
        request.raw_input_contents.extend(raw)

    return change


def _typed(request):
    _contents()(request)
    request.inputs[0].contents.bytes_contents.append(b"bad")


def _typed_and_raw(request):
    request.inputs[0].contents.bytes_contents.append(b"bad")


def _of_another_type(request):
    _contents()(request)
    request.inputs[0].contents.fp32_contents.append(float("nan"))


def _twice(request):
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def _without_a_value(request):
    request.parameters["score_threshold"].SetInParent()


_CHANGES = {  # how a good message is made bad, and the reason
    "message of one field": (lambda request: request.ClearField("inputs"), "expected 1 inputs but got 0"),
    "model of no name": (lambda request: request.ClearField("model_name"), "unknown model: ''"),
    "contents missing": (_contents(), "unable to find data for input tensor 'image'"),
    "contents too many": (_contents(b"a", b"b"), "incomplete string length"),
    "contents empty": (_contents(b""), "expected 1 string elements"),
    "contents whose string is longer": (
        _contents(struct.pack("<I", 2**32 - 1) + GOOD),
        "string of length 4294967295",
    ),
    "contents whose string is shorter": (
        _contents(struct.pack("<I", 3) + GOOD),
        "string elements 2",
    ),
    "contents of two strings": (
        _contents((struct.pack("<I", 1) + b"a") * 2),
        "string elements 2",
    ),
    "contents typed": (_typed, "allowed formats"),
    "contents typed and raw": (_typed_and_raw, "must not be specified when using raw_input_contents"),
    "contents of another type": (_of_another_type, "of type 'FP32', expected datatype 'BYTES'"),
    "shape empty, grpc": (_input(shape=[]), "has no shape"),
    "shape negative, grpc": (_input(shape=[-1, 1]), "expected 4294967295 string elements"),
    "shape of zero, grpc": (_input(shape=[0, 1]), None),
    "shape that overflows, grpc": (_input(shape=[2**33, 2**33]), "unexpected shape"),
    "shape of the largest, grpc": (_input(shape=[2**63 - 1, 2]), "unexpected shape"),
    "shape of a thousand dimensions, grpc": (_input(shape=[1] * 1000), "unexpected shape"),
    "datatype nobody knows, grpc": (_input(datatype="IMAGE"), "data-type is '<invalid>'"),
    "datatype empty, grpc": (_input(datatype=""), "data-type is '<invalid>'"),
    "input of no name, grpc": (_input(name=""), "unexpected inference input ''"),
    "input twice, grpc": (_twice, "'image' already exists"),
    "parameter nan, grpc": (_threshold(double_param=float("nan")), "'score_threshold' must be"),
    "parameter infinite, grpc": (_threshold(double_param=float("inf")), "'score_threshold' must be"),
    "parameter of 2^64 - 1, grpc": (_threshold(uint64_param=2**64 - 1), "invalid value type for"),
    "parameter of no value, grpc": (
        lambda request: request.parameters["score_threshold"].SetInParent(),
        "invalid value type for",
    ),
    "version nobody knows, grpc": (lambda request: setattr(request, "model_version", "99"), "unknown model"),
    "version of text, grpc": (
        lambda request: setattr(request, "model_version", "x"),
        "failed to get model version",
    ),
}

GRPC = {
    **{name: Wire(_message(change), reason) for name, (change, reason) in _CHANGES.items()},
    "message empty": Wire(b"", "unknown model: ''"),
    "message of noise": Wire(np.random.default_rng(0).bytes(1000), "Unable to parse"),
    "message cut": Wire(_message().SerializeToString()[:-20], "Unable to parse"),
}
