"""Several servers: which is asked, and that nothing is lost while one of them is away."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from fake_triton import KINDS, SCHEMES, ask, ask_once, fakes, names, predict
from pictures import picture

from m2f_client import Client, InvalidAddress, InvalidRequest, ModelNotFound, ServerUnavailable, Timeout
from m2f_client.transports import protocol
from m2f_client.transports.address import Endpoint
from m2f_client.transports.http import Targets


@pytest.mark.parametrize(
    ("url", "targets", "path"),
    [
        ("grpc://a:1,b:2", ("a:1", "b:2"), ""),
        ("grpc://a, b", ("a:8001", "b:8001"), ""),
        ("grpcs://a,b:1", ("a:443", "b:1"), ""),
        ("http://a:1,b/base/path/", ("a:1", "b:8000"), "/base/path"),
        ("https://a", ("a:443",), ""),
        ("http://bücher/bä se%20", ("xn--bcher-kva:8000",), "/b%C3%A4%20se%20"),
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


@KINDS
def test_grpc_takes_servers_in_turn(kind):
    with fakes("grpc", "ok", "ok") as (url, servers):
        before = []

        def calls():
            while not all(server.calls for server in servers):  # until both are connected
                yield predict
            before.extend(server.calls for server in servers)
            yield from [predict] * 40

        ask(kind, calls(), url)
        assert [server.calls - count for server, count in zip(servers, before, strict=True)] == [20, 20]


@KINDS
def test_http_stays_with_the_one_that_answers(kind):
    with fakes("http", "busy", "ok", "ok") as (url, servers):
        assert all(len(result) == 1 for result in ask(kind, [predict] * 5, url))
        assert [server.calls for server in servers] == [1, 5, 0]


@KINDS
@SCHEMES
@pytest.mark.parametrize("first", ["busy", "unloaded"])
def test_another_server_is_asked(kind, scheme, first):
    with fakes(scheme, first, "ok") as (url, _):
        assert all(len(result) == 1 for result in ask(kind, [predict] * 4, url))
        assert ask_once(kind, names, url) == ("cat",)


@KINDS
@SCHEMES
def test_a_server_that_is_away(kind, scheme):
    with fakes(scheme, "ok", "ok") as (url, servers):
        servers[0].stop()
        assert all(len(result) == 1 for result in ask(kind, [predict] * 4, url))


@KINDS
@SCHEMES
def test_a_refusal_is_an_answer(kind, scheme):
    with fakes(scheme, "refused", "refused") as (url, servers):
        with pytest.raises(InvalidRequest, match="wrong"):
            ask_once(kind, predict, url)
        assert sum(server.calls for server in servers) == 1


@KINDS
@pytest.mark.parametrize("answer", ["busy", "ending"])
def test_one_grpc_server_that_is_busy_for_a_moment_is_asked_again(kind, answer):
    with fakes("grpc", [answer, answer, "ok"]) as (url, servers):
        assert len(ask_once(kind, predict, url)) == 1
        assert servers[0].calls == 3


@KINDS
@SCHEMES
def test_all_are_away(kind, scheme):
    with fakes(scheme, "ok", "ok") as (url, servers):
        for server in servers:
            server.stop()
        with pytest.raises(ServerUnavailable, match=f"at {url}"):
            ask_once(kind, predict, url)


@pytest.fixture
def slow_servers(scheme, monkeypatch):
    """Two servers that take ten minutes to say that they are stopping, by the client's clock."""
    with fakes(scheme, "unloaded", "unloaded") as (url, servers):
        clock = SimpleNamespace(monotonic=lambda: 600.0 * sum(server.calls for server in servers))
        monkeypatch.setattr(protocol, "time", clock)
        yield url, servers


@KINDS
@pytest.mark.parametrize("scheme", ["http"])
def test_http_asks_no_other_server_when_the_time_is_over(kind, slow_servers):
    url, servers = slow_servers
    with pytest.raises(Timeout, match="within 500 s"):
        ask_once(kind, predict, url, timeout=500.0)
    assert [server.calls for server in servers] == [1, 0]


@KINDS
@pytest.mark.parametrize("scheme", ["grpc"])
def test_grpc_gives_each_server_the_time_that_is_left(kind, slow_servers):
    url, servers = slow_servers
    with pytest.raises(ServerUnavailable):
        ask_once(kind, predict, url, timeout=2000.0)  # asks for 2000, 1400 and 800 s
    assert min(seconds for server in servers for seconds in server.timeouts) < 1000


def test_none_of_several_names_is_known():
    with pytest.raises(ServerUnavailable, match=r"no host name in grpc://a\.invalid,b\.invalid can be resolved"):
        Client("grpc://a.invalid,b.invalid")


@pytest.mark.server
@pytest.mark.more
def test_no_image_is_lost_while_a_server_is_restarted(server):
    """Over both protocols at once, two threads each."""
    from m2f_server import serve

    images = [picture(60 + i, 70, seed=i) for i in range(4)]
    with Client(f"http://{server.http_url}") as client:
        expected = [client.predict(image, score_threshold=0.0) for image in images]
    counts, stop = [0] * len(images), threading.Event()

    def start(**ports):
        return serve(model_repository=ROOT / "model_repository", config_name="cpu", metrics_port=0, **ports)

    def work(client, number):
        while not stop.is_set():
            result = client.predict(images[number], score_threshold=0.0)
            assert np.array_equal(result.scores, expected[number].scores)
            counts[number] += 1

    def wait_for_more(workers):
        seen = list(counts)
        while not all(now >= before + 2 for now, before in zip(counts, seen, strict=True)):
            for worker in workers:
                assert not worker.done(), worker.result()
            time.sleep(0.01)

    with contextlib.ExitStack() as running, ThreadPoolExecutor(4) as pool:
        running.callback(stop.set)
        with start(http_port=0, grpc_port=0) as other:
            pairs = {"http": (other.http_url, server.http_url), "grpc": (other.grpc_url, server.grpc_url)}
            ports = {f"{scheme}_port": int(pair[0].rpartition(":")[2]) for scheme, pair in pairs.items()}
            clients = [running.enter_context(Client(f"{scheme}://{','.join(pairs[scheme])}")) for scheme in pairs]
            workers = [pool.submit(work, clients[number % 2], number) for number in range(4)]
            wait_for_more(workers)
        wait_for_more(workers)
        with start(**ports):
            wait_for_more(workers)
            stop.set()
            for worker in workers:
                worker.result()


@pytest.mark.server
def test_a_model_that_no_server_has(server):
    with Client(f"grpc://{server.grpc_url},{server.grpc_url}", model="x") as client, pytest.raises(ModelNotFound):
        client.predict(picture(40, 40))
