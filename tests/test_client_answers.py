"""Answers of a server that is broken or hostile: each is a `ServerError`, costs little, and the next call works."""

import asyncio
import contextlib
import gzip
import json
import struct
import time
from http.server import BaseHTTPRequestHandler

import grpc
import numpy as np
import pytest
from listen import listen_grpc, listen_http
from tritonclient.grpc import service_pb2, service_pb2_grpc

from m2f.contract import STRUCTURED_OUTPUTS
from m2f.rle import encode_mask
from m2f_client import AsyncClient, Client, InvalidAddress, InvalidRequest, Result, ServerError
from m2f_client.fake import AsyncFakeTransport, FakeTransport, result_of, stacked

KINDS = pytest.mark.parametrize("kind", [Client, AsyncClient])
SCHEMES = pytest.mark.parametrize("scheme", ["http", "grpc"])


def integers(*values):
    return np.array(values, np.int32).tobytes()


def floats(*values):
    return np.array(values, np.float32).tobytes()


def strings(*values):
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


GOOD = {  # one instance that fills an image of 2 x 3
    "num_instances": ("INT32", [1, 1], integers(1)),
    "scores": ("FP32", [1, 1], floats(0.9)),
    "labels": ("INT32", [1, 1], integers(0)),
    "boxes": ("FP32", [1, 1, 4], floats(0, 0, 3, 2)),
    "areas": ("INT32", [1, 1], integers(6)),
    "queries": ("INT32", [1, 1], integers(0)),
    "rle": ("BYTES", [1, 1], strings(encode_mask(np.ones((2, 3))))),
    "size": ("INT32", [1, 2], integers(2, 3)),
}


class Hostile:
    """A server that answers with `outputs`, or over HTTP with another `body`, and can compress.

    Attributes:
        headers: of the HTTP requests.
    """

    def __init__(self, scheme):
        self.outputs = dict(GOOD)
        self.body = self.encoding = None
        self.headers = []
        self.stop, port = self._serve_http() if scheme == "http" else self._serve_grpc()
        self.url = f"{scheme}://127.0.0.1:{port}"

    def _answer(self):
        if self.body is not None:
            return self.body
        outputs = [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, (datatype, shape, data) in self.outputs.items()
        ]
        head = json.dumps({"model_name": "m", "model_version": "1", "outputs": outputs}).encode()
        return head + b"".join(data for _, _, data in self.outputs.values()), len(head)

    def _serve_http(self):
        hostile = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                hostile.headers.append(self.headers)
                body, head_size = hostile._answer()
                self.send_response(200)
                if head_size is not None:
                    self.send_header("Inference-Header-Content-Length", str(head_size))
                if hostile.encoding is not None:
                    body = gzip.compress(body)
                    self.send_header("Content-Encoding", hostile.encoding)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # a client that goes away
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        return listen_http(Handler)

    def _serve_grpc(self):
        hostile = self

        class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
            def ModelInfer(self, request, context):  # noqa: ARG002, N802
                if hostile.encoding is not None:
                    context.set_compression(grpc.Compression.Gzip)
                answer = service_pb2.ModelInferResponse(model_name="m")
                for name, (datatype, shape, data) in hostile.outputs.items():
                    answer.outputs.add(name=name, datatype=datatype, shape=shape)
                    answer.raw_output_contents.append(data)
                return answer

            def ModelConfig(self, request, context):  # noqa: ARG002, N802
                return service_pb2.ModelConfigResponse()

        return listen_grpc(Service())


@contextlib.contextmanager
def hostile(scheme):
    server = Hostile(scheme)
    try:
        yield server
    finally:
        server.stop()


def ask(kind, calls, *args, **options):
    """What each of several calls of one client gives: a result, or the error it raises."""

    async def run():
        async with AsyncClient(*args, **options) as client:
            return [await caught_async(call, client) for call in calls]

    if kind is AsyncClient:
        return asyncio.run(run())
    with Client(*args, **options) as client:
        return [caught(call, client) for call in calls]


def caught(call, client):
    try:
        return call(client)
    except Exception as error:  # kept, with all that its traceback holds
        return error


async def caught_async(call, client):
    try:
        return await call(client)
    except Exception as error:
        return error


def predict(client):
    return client.predict(b"x")


def check(kind, server, change):
    """Return the error of an answer that is changed; that of the same client's next call is good."""

    def wrong(client):
        change(server)
        return client.predict(b"x")

    def right(client):
        server.outputs, server.body, server.encoding = dict(GOOD), None, None
        return client.predict(b"x")

    started = time.monotonic()
    error, result = ask(kind, [wrong, right], server.url, timeout=10)
    assert type(error) is ServerError, error
    assert error.request_id in str(error)
    assert result.masks.tolist() == [[[1, 1, 1]] * 2]
    assert time.monotonic() - started < 5
    return str(error)


BROKEN = {
    "missing": ("scores", None, "no output 'scores'"),
    "empty": ("scores", ("FP32", [0], b""), "cannot be read"),
    "short": ("scores", ("FP32", [1, 1], b"\0"), "cannot be read"),
    "another shape": ("scores", ("FP32", [1, 200_000_000], floats(0.9)), "cannot be read"),
    "negative shape": ("scores", ("FP32", [-5, -5], floats(0.9)), "cannot be read"),
    "datatype that is none": ("scores", ("XYZ", [1, 1], floats(0.9)), "cannot be read"),
    "another datatype": ("scores", ("INT32", [1, 1], integers(1)), r"'scores' .* int32 \[1\]; expected FP32 \[-1\]"),
    "fewer dimensions": ("boxes", ("FP32", [1, 4], floats(0, 0, 2, 2)), r"'boxes' .* expected FP32 \[-1, 4\]"),
    "boxes of three": ("boxes", ("FP32", [1, 1, 3], floats(0, 0, 2)), r"'boxes' .* expected FP32 \[-1, 4\]"),
    "strings that go on": ("rle", ("BYTES", [1, 1], b"\xff\xff\xff\xff"), "cannot be read"),
    "no ASCII": ("rle", ("BYTES", [1, 1], strings(b"\xff")), "not ASCII"),
    "no count": ("num_instances", ("INT32", [1, 0], b""), "'num_instances'"),
    "negative count": ("num_instances", ("INT32", [1, 1], integers(-1)), "-1 instances"),
    "fewer rows": ("num_instances", ("INT32", [1, 1], integers(2)), "'scores' .* 1 rows; there are 2 instances"),
    "no row of one": ("labels", ("INT32", [1, 0], b""), "'labels' .* 0 rows; there are 1 instances"),
    "huge label": ("labels", ("INT32", [1, 1], integers(2**31 - 1)), "'labels' .* up to 2147483647"),
    "negative size": ("size", ("INT32", [1, 2], integers(-5, -5)), "-5 x -5 pixels"),
    "no size": ("size", ("INT32", [1, 2], integers(0, 3)), "0 x 3 pixels"),
    "side": ("size", ("INT32", [1, 2], integers(1, 65536)), "1 x 65536 pixels"),
    "huge size": ("size", ("INT32", [1, 2], integers(30000, 30000)), "30000 x 30000 pixels; possible are 268435456"),
}


@KINDS
@SCHEMES
@pytest.mark.parametrize("case", BROKEN)
def test_an_output_that_is_broken(kind, scheme, case):
    name, tensor, message = BROKEN[case]

    def change(server):
        if tensor is None:
            del server.outputs[name]
        else:
            server.outputs[name] = tensor

    with hostile(scheme) as server, pytest.raises(ServerError, match=message):
        raise ServerError(check(kind, server, change))


@KINDS
@pytest.mark.parametrize(
    ("body", "head_size"),
    [
        (b"", None),
        (b"[" * 100_000, None),
        (b"[]", None),
        (b"{}", None),
        (b'"\xff"', None),
        (b'{"outputs": [{"name": "num_instances"}]}', None),
        (b"[[[" + bytes(1 << 20), 3),  # which is not read to its end
        (b"{}", "x"),
        (b"{}", -1),
    ],
)
def test_http_bodies_that_are_no_answer(kind, body, head_size):
    def change(server):
        server.body = body, head_size

    with hostile("http") as server, pytest.raises(ServerError, match=r"cannot be read|no UTF-8|no output"):
        raise ServerError(check(kind, server, change))


@KINDS
@SCHEMES
def test_a_compressed_answer_is_not_unpacked(kind, scheme):
    def change(server):
        server.encoding = "gzip"
        server.outputs["unasked"] = ("UINT8", [1, 1 << 24], bytes(1 << 24))

    with hostile(scheme) as server:
        assert "ompress" in check(kind, server, change)
        assert all(headers["Accept-Encoding"] == "identity" for headers in server.headers)


@KINDS
def test_a_compressed_answer_that_was_asked_for(kind):
    with hostile("http") as server:
        server.encoding = "gzip"
        (result,) = ask(kind, [predict], server.url, headers={"Accept-Encoding": "gzip"})
        assert len(result) == 1


def test_a_configuration_that_is_empty():
    with hostile("grpc") as server:
        for kind in (Client, AsyncClient):
            (error,) = ask(kind, [names], server.url)
            assert isinstance(error, ServerError), error


def names(client):
    return client.class_names


def faked(kind, *results, config=None):
    transport = FakeTransport(lambda _: stacked(results), config=config)
    return {"transport": transport if kind is Client else AsyncFakeTransport(transport)}


@KINDS
@pytest.mark.parametrize(
    "parameters",
    [
        ["x"],
        "x",
        {"class_names": []},
        {"class_names": {"string_value": "[" * 100_000}},
        {"class_names": {"string_value": 5}},
    ],
)
def test_class_names_that_are_none(kind, parameters):
    (error,) = ask(kind, [names], **faked(kind, config={"parameters": parameters}))
    assert type(error) is ServerError


@KINDS
def test_more_pixels_than_were_sent(kind):
    def sending(height, width):
        return lambda client: client.predict(np.zeros((height, width, 3), np.uint8))

    answered = faked(kind, result_of(np.ones((1, 6, 4))))
    result, turned, error = ask(kind, [sending(6, 4), sending(4, 6), sending(6, 3)], **answered)
    assert result.size == turned.size == (6, 4)
    assert type(error) is ServerError
    assert "6 x 4 pixels; possible are 18" in str(error)


@KINDS
def test_fewer_images_than_were_sent(kind):
    answered = faked(kind, result_of(np.ones((1, 6, 4))))
    (error,) = ask(kind, [lambda client: client.predict_batch([b"x", b"y"])], **answered)
    assert type(error) is ServerError


@KINDS
@SCHEMES
def test_errors_of_the_caller_are_not_the_servers(kind, scheme):
    url = f"{scheme}://127.0.0.1:1"
    wrong = [{"outputs": (3,)}, {"outputs": ("\udc80",)}, {"classes": "\udc80"}, {"\udc80": 1}]
    calls = [lambda client, options=options: client.predict(b"x", **options) for options in wrong]
    for error in ask(kind, calls, url) + ask(kind, [predict], url, model=3):
        assert type(error) is InvalidRequest, error
    with pytest.raises(InvalidAddress, match="label"):
        kind(f"{scheme}://{'a' * 70}")


def test_a_closed_grpc_client_is_not_the_servers_fault():
    client = Client("grpc://127.0.0.1:1")
    client.close()
    with pytest.raises(ValueError, match="closed channel"):
        client.predict(b"x")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("masks", np.ones((1, 1, 2, 2), np.uint8)),
        ("masks", np.ones((1, 1, 1, 3), np.uint8)),
        ("packed_masks", np.ones((1, 1, 2, 0), np.uint8)),
        ("panoptic", np.ones((1, 2, 2), np.int32)),
        ("semantic", np.ones((1, 1, 3), np.int32)),
        ("masks", np.ones((1, 1, 2, 3), np.float32)),
        ("rle", np.array([[5]], object)),
        ("segments", np.array([["[]"]], object)),
    ],
)
def test_arrays_that_do_not_go_with_the_rest(name, array):
    answer = stacked([result_of(np.ones((1, 2, 3)))])
    assert Result.from_batch(answer, 0).masks.shape == (1, 2, 3)
    with pytest.raises(ServerError, match=f"'{name}' from the server"):
        Result.from_batch({**answer, name: array}, 0)


def test_rows_without_a_count():
    answer = stacked([result_of(np.ones((2, 2, 3)))])
    del answer["num_instances"]
    assert len(Result.from_batch(answer, 0)) == 2
    with pytest.raises(ServerError, match="'scores' from the server has 1 rows; there are 2 instances"):
        Result.from_batch({**answer, "scores": answer["scores"][:, :1]}, 0)
    unmade = {**answer, "masks": np.zeros((1, 0, 2, 3), np.uint8)}  # no masks were made
    assert len(Result.from_batch(unmade, 0)) == 2


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[1]", '[{"id": 1}]', '[{"id": "1", "category_id": 1}]'])
def test_segments_that_are_none(text):
    with pytest.raises(ServerError, match="segments from the server"):
        Result({"segments": np.array([text.encode()], object)}).segments  # noqa: B018


def test_the_good_answer_has_every_structured_output():
    assert set(GOOD) == set(STRUCTURED_OUTPUTS)
