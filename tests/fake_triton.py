"""A server of either protocol in this process that answers as it is told, and both clients to ask it."""

import asyncio
import contextlib
import gzip
import json
import struct
from http.server import BaseHTTPRequestHandler

import grpc
import numpy as np
import pytest
from listen import listen_grpc, listen_http
from tritonclient.grpc import service_pb2, service_pb2_grpc

from m2f.rle import encode_mask
from m2f_client import AsyncClient, Client

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
    "class_names": ("BYTES", [1, 1], strings(b'["cat"]')),
}
REFUSALS = {  # word -> HTTP status, gRPC status, message
    "busy": (503, grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"),
    "unloaded": (404, grpc.StatusCode.NOT_FOUND, "unknown model: 'x' has no available versions"),
    "unknown": (404, grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'x' is not found"),
    "ending": (503, grpc.StatusCode.CANCELLED, "CANCELLED"),
    "refused": (400, grpc.StatusCode.INVALID_ARGUMENT, "wrong"),
}


class FakeTriton:
    """Answers inferences with `outputs`.

    Attributes:
        url: its address.
        calls: requests so far.
        answers: "ok" or a word of REFUSALS for every request; or one for each request, the last for all after it.
        outputs: name -> datatype, shape, bytes.
        body, encoding: over HTTP, another body with its JSON's length, and a Content-Encoding.
        headers: of each request so far; gRPC calls them metadata.
        paths: of the HTTP requests so far.
        peers: the clients' ends of the connections that requests came on so far.
        timeouts: seconds that each gRPC request had left so far.
    """

    def __init__(self, scheme, answers="ok", *place):
        self.calls, self.answers, self.outputs = 0, answers, dict(GOOD)
        self.body = self.encoding = None
        self.headers, self.paths, self.timeouts, self.peers = [], [], [], set()
        self.stop, port = self._serve_http(*place) if scheme == "http" else self._serve_grpc(*place)
        self.address = f"{place[0] if place else '127.0.0.1'}:{port}"
        self.url = f"{scheme}://{self.address}"

    def _refusal(self):
        self.calls += 1
        told = self.answers if isinstance(self.answers, str) else self.answers[min(self.calls, len(self.answers)) - 1]
        return REFUSALS.get(told)

    def _encoded(self):
        if self.body is not None:
            return self.body
        outputs = [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, (datatype, shape, data) in self.outputs.items()
        ]
        head = json.dumps({"model_name": "m", "model_version": "1", "outputs": outputs}).encode()
        return head + b"".join(data for _, _, data in self.outputs.values()), len(head)

    def _serve_http(self, *place):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self._send(*fake._encoded())

            def _send(self, body, head_size):
                fake.headers.append(self.headers)
                fake.paths.append(self.path)
                fake.peers.add(self.client_address)
                status = 200
                if refusal := fake._refusal():
                    status, body, head_size = refusal[0], json.dumps({"error": refusal[2]}).encode(), None
                self.send_response(status)
                if head_size is not None:
                    self.send_header("Inference-Header-Content-Length", str(head_size))
                if fake.encoding is not None:
                    body = gzip.compress(body)
                    self.send_header("Content-Encoding", fake.encoding)
                self.send_header("Content-Length", str(len(body)))
                with contextlib.suppress(OSError):  # a client that goes away
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        return listen_http(Handler, *place)

    def _serve_grpc(self, *place):
        fake = self

        class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
            def ModelInfer(self, request, context):  # noqa: ARG002, N802
                self._refuse(context)
                if fake.encoding is not None:
                    context.set_compression(grpc.Compression.Gzip)
                answer = service_pb2.ModelInferResponse(model_name="m")
                for name, (datatype, shape, data) in fake.outputs.items():
                    answer.outputs.add(name=name, datatype=datatype, shape=shape)
                    answer.raw_output_contents.append(data)
                return answer

            def _refuse(self, context):
                fake.headers.append(dict(context.invocation_metadata()))
                fake.timeouts.append(context.time_remaining())
                fake.peers.add(context.peer())
                if refusal := fake._refusal():
                    context.abort(*refusal[1:])

        return listen_grpc(Service(), *place)


@contextlib.contextmanager
def fake_triton(scheme, answers="ok", *place):
    server = FakeTriton(scheme, answers, *place)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def fakes(scheme, *answers):
    """Several servers, and the address of all."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(fake_triton(scheme, answer)) for answer in answers]
        yield f"{scheme}://" + ",".join(server.address for server in servers), servers


def ask(kind, calls, *args, **options):
    """What each of several calls of one client gives: a result, or the error it raises."""

    async def run():
        async with AsyncClient(*args, **options) as client:
            return [await _caught_async(call, client) for call in calls]

    if kind is AsyncClient:
        return asyncio.run(run())
    with Client(*args, **options) as client:
        return [_caught(call, client) for call in calls]


def ask_once(kind, call, *args, **options):
    """What one call of a client returns; its error is raised."""
    (answer,) = ask(kind, [call], *args, **options)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _caught(call, client):
    try:
        return call(client)
    except Exception as error:  # kept, with all that its traceback holds
        return error


async def _caught_async(call, client):
    try:
        return await call(client)
    except Exception as error:
        return error


def predict(client):
    return client.predict(b"x")


def names(client):
    return client.class_names
