"""Connections over HTTP: answers that break off, connections that are kept, and timeouts that bound whole calls."""

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_triton import KINDS, ask, ask_once, fake_triton, names, predict
from raw_http import NAMES, RESET, raw_server, whole

from m2f_client import Client, InvalidRequest, ServerError, ServerUnavailable, Timeout

GOOD = whole(NAMES)
HALF = GOOD[: len(GOOD) - len(NAMES) // 2]


@KINDS
@pytest.mark.parametrize("start", [b"", GOOD[:60]], ids=["headers", "body"])
def test_a_server_that_answers_drop_by_drop_does_not_stretch_the_timeout(kind, start):
    """Each read would be quick enough; the server gives up only when the client has hung up."""
    rest = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nX: "[len(start) :] + b"x" * 100_000
    with raw_server(lambda _: [[start, 0.01, rest]]) as server:
        with pytest.raises(Timeout, match=r"within 0\.3 s"):
            ask_once(kind, names, server.url, timeout=0.3)
        assert server.gone.wait(60)


def test_the_look_up_of_a_name_does_not_stretch_the_timeout(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(60))
    with pytest.raises(Timeout, match=r"within 0\.1 s"):
        ask_once(Client, names, "http://a.name", timeout=0.1)
    done.set()


@KINDS
@pytest.mark.parametrize("end", [[], [HALF], [HALF, RESET], [RESET]], ids=["idle", "half", "reset in half", "reset"])
def test_a_kept_connection_that_breaks_is_replaced(kind, end):
    """The server answers once on each connection; the first it closes, or breaks at the second request."""

    def answers(number):
        return [[GOOD]] if number or not end else [[GOOD], end]

    with raw_server(answers) as server:
        assert all(len(set(ask(kind, [names], server.url))) == 1 for _ in range(2))
        calls = [lambda client: client.predict(b"x"), names]
        answer, name = ask(kind, calls, server.url)
        assert isinstance(answer, ServerError)  # no inference
        assert name == ("cat",)


@KINDS
@pytest.mark.parametrize("answer", [[], [HALF], [HALF, RESET], [RESET]], ids=["none", "half", "reset in half", "reset"])
def test_an_answer_that_breaks_off(kind, answer):
    """The server is asked twice, and then the next one."""
    with raw_server(lambda _: [answer]) as broken, raw_server(lambda _: [[GOOD]]) as sound:
        with pytest.raises(ServerUnavailable, match=f"the server at {broken.url} closed the connection"):
            ask_once(kind, names, broken.url)
        assert broken.requests == 2
        assert ask_once(kind, names, f"{broken.url},{sound.address}") == ("cat",)


@KINDS
@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        ("413 Too Large", InvalidRequest, r"the body is too large \(413\)"),
        ("429 Too Many", ServerUnavailable, "takes no work now"),
        ("502 Bad Gateway", ServerUnavailable, "takes no work now"),
        ("503 Unavailable", ServerUnavailable, "takes no work now"),
        ("504 Gateway Timeout", Timeout, "no answer"),
        ("500 Error", ServerError, "not a Triton server"),
        ("404 Not Found", ServerError, "not a Triton server"),
        ("302 Found", ServerError, "not a Triton server"),
    ],
)
def test_the_page_of_a_front(kind, status, error, message):
    page = whole(b"<html>no</html>", status, "Content-Type: text/html")
    with raw_server(lambda _: [[page]]) as front, raw_server(lambda _: [[GOOD]]) as sound:
        with pytest.raises(error, match=message):
            ask_once(kind, names, front.url)
        (after,) = ask(kind, [names], f"{front.url},{sound.address}")
        assert after == ("cat",) if error is ServerUnavailable else type(after) is error


@KINDS
@pytest.mark.parametrize("words", [b"220 mail.example ESMTP\r\n\r\n", b"\0\0\x12\4\0\0\0\0\0"], ids=["smtp", "http2"])
def test_a_server_that_does_not_speak_http(kind, words):
    with raw_server(lambda _: [[words]]) as server, pytest.raises(ServerUnavailable, match="does not speak HTTP"):
        ask_once(kind, names, server.url)


@KINDS
def test_an_answer_in_chunks(kind):
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (NAMES[:9], NAMES[9:], b""))
    with raw_server(lambda _: [[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks]]) as server:
        assert ask_once(kind, names, server.url) == ("cat",)


def test_threads_that_come_and_go_share_connections():
    with raw_server(lambda _: [[GOOD]] * 100) as server, Client(server.url) as client:
        for _ in range(20):
            thread = threading.Thread(target=predict_no_matter_what, args=[client])
            thread.start()
            thread.join()
        assert (server.connections, server.requests) == (1, 20)


def predict_no_matter_what(client):
    with pytest.raises(ServerError):  # the answer is a configuration
        client.predict(b"x")


def test_threads_wait_for_no_other():
    """Each of 40 requests is answered only when all of them are there."""
    together = threading.Barrier(40)

    def answers(_):
        together.wait(60)
        return [[GOOD]]

    with raw_server(answers) as server, Client(server.url) as client, ThreadPoolExecutor(40) as pool:
        list(pool.map(lambda _: predict_no_matter_what(client), range(40)))
        assert server.connections == 40


def test_closing_lets_calls_in_other_threads_finish():
    asked, go = threading.Event(), threading.Event()

    def answers(_):
        yield [GOOD]
        yield later()

    def later():
        asked.set()
        go.wait(60)
        yield GOOD

    with raw_server(answers) as server, ThreadPoolExecutor(1) as pool:
        client = Client(server.url)
        predict_no_matter_what(client)
        call = pool.submit(lambda: client.class_names)
        assert asked.wait(60)
        client.close()
        go.set()
        assert call.result() == ("cat",)
        assert server.requests == 2


def test_a_large_body_and_its_answer_arrive_whole():
    image = bytes(5 << 20)
    with fake_triton("http") as server, Client(server.url) as client:
        server.outputs["panoptic"] = ("INT32", [1, 2, 3], bytes(24))
        server.outputs["unasked"] = ("UINT8", [1, 1 << 24], bytes(1 << 24))
        assert len(client.predict(image)) == 1
        assert int(server.headers[0]["Content-Length"]) > len(image)


@KINDS
def test_base_path_and_headers(kind):
    with fake_triton("http") as server:
        ask(kind, [predict, names], f"{server.url}/base/path/", headers={"X-Tenant": "a", "Host": "other"})
        assert server.paths == ["/base/path/v2/models/mask2former/infer"] * 2
        assert [(headers["X-Tenant"], headers["Host"]) for headers in server.headers] == [("a", "other")] * 2


def has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def slow_to_accept():
    """A server that accepts no connection until it is told to; `url`, and how to tell it."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # the kernel has room for one of them
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())

        def serve(connection):
            with connection, contextlib.suppress(OSError):
                while connection.recv(65536):
                    connection.sendall(GOOD)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        yield f"http://127.0.0.1:{listener.getsockname()[1]}", threading.Thread(target=accept, daemon=True).start
        listener.shutdown(socket.SHUT_RDWR)


@KINDS
def test_another_server_is_asked_if_one_accepts_no_connection(kind):
    with slow_to_accept() as (url, _), raw_server(lambda _: [[GOOD]]) as sound:
        assert ask_once(kind, names, f"{url},{sound.address}") == ("cat",)


@KINDS
def test_a_server_that_accepts_no_connection_at_once_is_asked_again_if_no_other_answers(kind):
    with slow_to_accept() as (url, begin):

        def refuse(_):
            begin()
            return [[whole(b"", "503 Service Unavailable")]]

        with raw_server(refuse) as busy:
            assert ask_once(kind, names, f"{url},{busy.address}") == ("cat",)


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6")


@KINDS
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=IPV6)])
def test_the_host_header_is_the_address(kind, host):
    """IPv6 in brackets."""
    with raw_server(lambda _: [[GOOD]], host=host) as server:
        assert ask_once(kind, names, server.url) == ("cat",)
        assert server.hosts == [server.address]


@IPV6
def test_the_zone_of_an_address_means_something_on_this_machine_only(monkeypatch):
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest: look_up(host.removesuffix("%eth0"), *rest))
    with raw_server(lambda _: [[GOOD]], host="::1") as server:
        assert ask_once(Client, names, server.url.replace("]", "%eth0]")) == ("cat",)
        assert server.hosts == [server.address]
