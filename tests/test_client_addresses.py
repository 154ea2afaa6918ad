"""Several servers: which is asked, and that nothing is lost while one of them is away."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import ROOT
from fake_triton import KINDS, SCHEMES, ask, ask_once, fakes, names, predict
from http_proxy import no_proxies
from pictures import picture

from m2f_client import Client, InvalidAddress, InvalidRequest, ModelNotFound, ServerUnavailable, Timeout
from m2f_client.transports import protocol
from m2f_client.transports import servers as servers_module
from m2f_client.transports.address import Endpoint, announced, is_address
from m2f_client.transports.proxies import proxy_for
from m2f_client.transports.servers import Turns


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
        ("http://[fe80::1%eth0]:1", ("[fe80::1%eth0]:1",), ""),
        ("http://A.example:", ("a.example:8000",), ""),
        ("grpc://a:1/", ("a:1",), ""),
    ],
)
def test_addresses(url, targets, path):
    endpoint = Endpoint.parse(url)
    assert (endpoint.targets, endpoint.path, endpoint.url) == (targets, path, url)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("a:1", "grpc://a:1"),
        ("a", "grpc://a"),
        ("127.0.0.1:8001/", "grpc://127.0.0.1:8001/"),
        ("a:1,b", "grpc://a:1,b"),
        ("[::1]", "grpc://[::1]"),
        (" a:1\n", "grpc://a:1"),
        ("GRPC://a", "grpc://a"),
        ("Https://a/B", "https://a/B"),
    ],
)
def test_an_address_without_a_scheme_is_grpc_and_capitals_do_not_matter(url, meant):
    assert Endpoint.parse(url) == Endpoint.parse(meant)
    assert Endpoint.parse(url).url == meant


READY = {"http": "127.0.0.1:8000", "grpc": "127.0.0.1:8001", "tls": False, "models": ["m"]}


@pytest.mark.parametrize(("tls", "scheme"), [(False, "grpc"), (True, "grpcs")])
def test_the_line_of_m2f_serve(tls, scheme):
    line = json.dumps({**READY, "tls": tls}) + "\n"
    assert Endpoint.parse(line).url == f"{scheme}://127.0.0.1:8001"
    assert announced(line, "http") == "http://127.0.0.1:8000"


@pytest.mark.parametrize("line", ["{", "{}", "{" * 100_000, '{"grpc": 8001, "tls": false}', '{"grpc": "a:1"}', "{1}"])
def test_json_that_is_not_the_line_of_m2f_serve(line):
    with pytest.raises(InvalidAddress, match="is not the line that m2f serve --json prints") as caught:
        Endpoint.parse(line)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        *((f"{scheme}://a/b", f"{scheme}:// is not a scheme") for scheme in ("s3", "rtsp", "ftp", "file", "dns", "ws")),
        ("unix:///tmp/x", "unix:// is not a scheme of a server; use grpc://HOST:PORT, http://HOST:PORT"),
        ("grpc://a,", "PORT is 1 to 65535"),
        ("grpc://,a", "PORT is 1 to 65535"),
        ("", "use grpc://HOST:PORT"),
        (" ", "use grpc://HOST:PORT"),
        ("grpc://", "use grpc://HOST:PORT"),
        ("http:///path", "use grpc://HOST:PORT"),
        (":8001", "use grpc://HOST:PORT"),
        ("grpc://a:1,b:x", "PORT is 1 to 65535"),
        ("a:0", "PORT is 1 to 65535"),
        ("a:65536", "PORT is 1 to 65535"),
        ("a:-1", "PORT is 1 to 65535"),
        ("a:" + "9" * 5000, "PORT is 1 to 65535"),
        ("grpc:a:1", "use grpc://HOST:PORT"),
        ("ipv4:1.2.3.4:5", "use grpc://HOST:PORT"),
        ("a b:1", "use grpc://HOST:PORT"),
        ("grpc://a\0b", "use grpc://HOST:PORT"),
        ("http://[::1", "use grpc://HOST:PORT"),
        ("::1", r"in brackets: grpc://\[::1\]:8001"),
        ("http://fe80::1", r"in brackets: http://\[::1\]:8000"),
        ("::1:8001", "in brackets"),
        ("grpc://a,grpc://b", "several servers are grpc://HOST:PORT,HOST:PORT"),
        ("http://a,http://b", "several servers are http://HOST:PORT,HOST:PORT"),
        ("grpc://a/v2", "gRPC has no path"),
        ("http:/a", "gRPC has no path"),
        ("http://a?b", "a query"),
        ("http://a/b?c=1", "a query"),
        ("a#b", "a fragment"),
        ("http://a..b", "empty or too long"),
        ("x" * 70_000, "empty or too long"),
        (__file__, "it is a file"),
        (b"grpc://a", "text; got bytes"),
        (None, "text; got NoneType"),
    ],
)
def test_what_is_not_an_address_says_why(url, reason):
    with pytest.raises(InvalidAddress, match=reason) as caught:
        Endpoint.parse(url)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("url", ["{}u:secret@a", "{}secret@a:1", "{}u:se/cret@a", "{}u:secret@a?q", "{}u:secret@a,b:x"])
@pytest.mark.parametrize("scheme", ["", "grpc://", "http://", "s3://"])
def test_a_password_is_not_repeated(scheme, url):
    with pytest.raises(InvalidAddress) as caught:
        Endpoint.parse(url.format(scheme))
    assert "secret" not in str(caught.value)
    assert "se/cret" not in str(caught.value)


@pytest.mark.parametrize("text", ["a:1", "http://x", "127.0.0.1:1,b", "[::1]:3", json.dumps(READY), "s3://x"])
def test_addresses_and_files_are_told_apart(text):
    assert is_address(text)
    assert not any(map(is_address, ["results.json", "a/results.json", "localhost", "C:\\x", "a:b", ""]))


@pytest.mark.parametrize("examples", [200, pytest.param(50_000, marks=pytest.mark.chaos)])
def test_any_text_is_an_address_or_is_refused(monkeypatch, examples):
    """And so is any text in the variables for proxies."""
    no_proxies(monkeypatch)
    letters = st.text('a0:/[]@?#%,.{}"grpchtps-* \\\n~é', max_size=30)

    @hypothesis.settings(max_examples=examples)
    @hypothesis.given(letters, letters, letters)
    def check(url, proxy, exceptions):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", exceptions)
        assert is_address(url) in (True, False)
        with contextlib.suppress(InvalidAddress):
            endpoint = Endpoint.parse(url)
            assert Endpoint.parse(endpoint.url) == endpoint
            for target in endpoint.targets:
                proxy_for(endpoint.scheme, target)

    check()


def test_servers_are_asked_in_turn_and_one_that_failed_last_for_a_while(monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(servers_module, "time", clock)
    turns = Turns()
    assert [turns.order("abc") for _ in range(3)] == [list("abc"), list("bca"), list("cab")]
    failures = [(False, rest) for rest in (1, 2, 4, 8, 16, 30, 30)] + [(True, 1), (True, 1), (False, 2)]
    for in_time, rest in failures:
        for _ in range(3):  # three requests at once: the second and the third add nothing
            turns.failed("a", in_time=in_time)
        clock.now += rest - 0.1
        assert {turns.order("ab")[0] for _ in range(2)} == {"b"}
        clock.now += 0.1
        assert {turns.order("ab")[0] for _ in range(2)} == {"a", "b"}
    turns.failed("a", in_time=True)
    turns.answered("a")
    assert {turns.order("ab")[0] for _ in range(2)} == {"a", "b"}


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
def test_http_takes_servers_in_turn(kind):
    with fakes("http", "ok", "ok") as (url, servers):
        assert all(len(result) == 1 for result in ask(kind, [predict] * 6, url))
        assert [server.calls for server in servers] == [3, 3]


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


@KINDS
@SCHEMES
def test_none_of_several_names_is_known(kind, scheme):
    with pytest.raises(ServerUnavailable, match=rf"at {scheme}://a\.invalid,b\.invalid"):
        ask_once(kind, predict, f"{scheme}://a.invalid,b.invalid")


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
