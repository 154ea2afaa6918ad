"""Several servers: which is asked, and that nothing is lost while one of them is away."""

import asyncio
import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import grpc
import numpy as np
import pytest
from conftest import ROOT
from listen import listen_grpc, listen_http
from pictures import picture
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from m2f_client import AsyncClient, Client, InvalidAddress, ModelNotFound, ServerUnavailable
from m2f_client.request import class_names_of
from m2f_client.transports.address import Endpoint
from m2f_client.transports.protocol import Targets
from m2f_server import serve

KINDS = pytest.mark.parametrize("kind", [Client, AsyncClient])
SCHEMES = pytest.mark.parametrize("scheme", ["grpc", "http"])


@pytest.mark.parametrize(
    ("url", "targets", "path"),
    [
        ("grpc://a:1,b:2", ("a:1", "b:2"), ""),
        ("grpc://a, b", ("a:8001", "b:8001"), ""),
        ("grpcs://a,b:1", ("a:443", "b:1"), ""),
        ("http://a:1,b/base/path/", ("a:1", "b:8000"), "/base/path"),
        ("https://a", ("a:443",), ""),
        ("grpc://[::1]:1,[::2]", ("[::1]:1", "[::2]:8001"), ""),
    ],
)
def test_addresses(url, targets, path):
    endpoint = Endpoint.parse(url)
    assert (endpoint.targets, endpoint.path, endpoint.url) == (targets, path, url)


@pytest.mark.parametrize(
    "url",
    [
        "grpc://a,",
        "grpc://,a",
        "grpc://a:1,b:x",
        "grpc://a,grpc://b",
        "http://a,http://b",
        "grpc://a/v2",
        "http://u:p@a",
        "http://a?b",
    ],
)
def test_lists_that_are_none(url):
    with pytest.raises(InvalidAddress):
        Endpoint.parse(url)


def test_the_one_that_answered_is_asked_first():
    targets = Targets("abc")
    targets.pass_over("a")
    assert targets.in_turn() == ("b", "c", "a")
    targets.pass_over("a")  # somebody else has done that
    assert targets.in_turn() == ("b", "c", "a")
    targets.pass_over("b")
    targets.pass_over("c")
    assert targets.in_turn() == ("a", "b", "c")


NAMES = {"parameters": {"class_names": {"string_value": '["cat"]'}}}
STATUS = {"ok": 200, "busy": 503, "unloaded": 404, "refused": 400}
CODES = {"busy": grpc.StatusCode.UNAVAILABLE, "unloaded": grpc.StatusCode.NOT_FOUND,
         "ending": grpc.StatusCode.CANCELLED, "refused": grpc.StatusCode.INVALID_ARGUMENT}  # fmt: skip
WORDS = {"busy": "Exceeds maximum queue size", "unloaded": "unknown model: 'x' has no available versions",
         "ending": "CANCELLED", "refused": "wrong"}  # fmt: skip


class Fake:
    """A server of either protocol that knows one model configuration, and answers as it is told."""

    def __init__(self, scheme, answers="ok"):
        self.calls, self.answers = 0, answers
        self.stop, self.port = self._serve_grpc() if scheme == "grpc" else self._serve_http()

    def next(self):
        self.calls += 1
        return self.answers if isinstance(self.answers, str) else self.answers[min(self.calls, len(self.answers)) - 1]

    def _serve_http(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer = fake.next()
                body = json.dumps(NAMES if answer == "ok" else {"error": WORDS[answer]}).encode()
                self.send_response(STATUS[answer])
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        return listen_http(Handler)

    def _serve_grpc(self):
        fake = self

        class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
            def ModelConfig(self, request, context):  # noqa: ARG002, N802
                answer = fake.next()
                if answer != "ok":
                    context.abort(CODES[answer], WORDS[answer])
                config = model_config_pb2.ModelConfig()
                config.parameters["class_names"].string_value = '["cat"]'
                return service_pb2.ModelConfigResponse(config=config)

        return listen_grpc(Service())


@contextlib.contextmanager
def fakes(scheme, *answers):
    servers = [Fake(scheme, answer) for answer in answers]
    try:
        yield f"{scheme}://" + ",".join(f"127.0.0.1:{server.port}" for server in servers), servers
    finally:
        for server in servers:
            server.stop()


def config(kind, url, times=1, **options):
    """What `times` calls, one after the other, get from a client's transport."""
    if kind is Client:
        with Client(url, **options) as client:
            return [class_names_of(client._transport.model_config("m", 20)) for _ in range(times)]

    async def run():
        async with AsyncClient(url, **options) as client:
            return [class_names_of(await client._transport.model_config("m", 20)) for _ in range(times)]

    return asyncio.run(run())


@KINDS
def test_grpc_takes_servers_in_turn(kind):
    with fakes("grpc", "ok", "ok") as (url, servers):
        time.sleep(0.1)
        config(kind, url, times=40)
        assert min(server.calls for server in servers) >= 15


@KINDS
def test_http_stays_with_the_one_that_answers(kind):
    with fakes("http", "busy", "ok", "ok") as (url, servers):
        assert config(kind, url, times=5) == [("cat",)] * 5
        assert [server.calls for server in servers] == [1, 5, 0]


@KINDS
@SCHEMES
@pytest.mark.parametrize("first", ["busy", "unloaded"])
def test_another_server_is_asked(kind, scheme, first):
    with fakes(scheme, first, "ok") as (url, _):
        assert config(kind, url, times=4) == [("cat",)] * 4


@KINDS
@SCHEMES
def test_a_server_that_is_away(kind, scheme):
    with fakes(scheme, "ok", "ok") as (url, servers):
        servers[0].stop()
        assert config(kind, url, times=4) == [("cat",)] * 4


@KINDS
@SCHEMES
def test_a_refusal_is_an_answer(kind, scheme):
    with fakes(scheme, "refused", "refused") as (url, servers):
        with pytest.raises(Exception, match="wrong"):
            config(kind, url)
        assert sum(server.calls for server in servers) == 1


@KINDS
@pytest.mark.parametrize("answer", ["busy", "ending"])
def test_one_grpc_server_that_is_busy_for_a_moment_is_asked_again(kind, answer):
    with fakes("grpc", [answer, answer, "ok"]) as (url, servers):
        assert config(kind, url) == [("cat",)]
        assert servers[0].calls == 3


@KINDS
@SCHEMES
def test_all_are_away(kind, scheme):
    with fakes(scheme, "ok", "ok") as (url, servers):
        for server in servers:
            server.stop()
        with pytest.raises(ServerUnavailable, match=f"at {url}"):
            config(kind, url)


def test_none_of_several_names_is_known():
    with pytest.raises(ServerUnavailable, match=r"none of the servers in grpc://a\.invalid,b\.invalid is known"):
        Client("grpc://a.invalid,b.invalid")


@pytest.mark.server
@SCHEMES
def test_no_image_is_lost_while_a_server_is_restarted(server, scheme):
    images = [picture(60 + i, 70, seed=i) for i in range(4)]
    own = {"http": server.http_url, "grpc": server.grpc_url}[scheme]
    stop = threading.Event()

    def start(**ports):
        return serve(model_repository=ROOT / "model_repository", config_name="cpu", metrics_port=0, **ports)

    def work(client, number):
        image, count = images[number], 0
        while not stop.is_set():
            result = client.predict(image, score_threshold=0.0)
            assert np.array_equal(result.scores, expected[number].scores)
            count += 1
        return count

    with Client(f"{scheme}://{own}") as client:
        expected = [client.predict(image, score_threshold=0.0) for image in images]
    with contextlib.ExitStack() as running, ThreadPoolExecutor(4) as pool:
        running.callback(stop.set)
        with start(http_port=0, grpc_port=0) as other:
            address = {"http": other.http_url, "grpc": other.grpc_url}[scheme]
            ports = {f"{name}_port": int(url.rpartition(":")[2])
                     for name, url in (("http", other.http_url), ("grpc", other.grpc_url))}  # fmt: skip
            client = running.enter_context(Client(f"{scheme}://{address},{own}", timeout=30))
            counts = [pool.submit(work, client, number) for number in range(4)]
            time.sleep(0.5)
        with start(**ports):
            time.sleep(0.5)
            stop.set()
            assert all(count.result() > 0 for count in counts)


@pytest.mark.server
def test_a_model_that_no_server_has(server):
    with Client(f"grpc://{server.grpc_url},{server.grpc_url}", model="x") as client, pytest.raises(ModelNotFound):
        client.predict(picture(40, 40))
