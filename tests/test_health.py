"""The health port: what it answers, and that misuse of the port keeps no probe from its answer."""

import contextlib
import http.client
import json
import resource
import socket
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from m2f_server import responder
from m2f_server.health import Health, ReadyMetric, endpoint
from m2f_server.ports import bind
from m2f_server.responder import MOST_CONNECTIONS

READY = b"GET /ready HTTP/1.1\r\nHost: m2f\r\n\r\n"


class Port:
    """An endpoint under test.

    Attributes:
        answer: what it answers of the whole server; an exception is raised.
        troubles: why a model does not serve, by name of the public model; empty if it serves.
    """

    def __init__(self, bound):
        self.answer = Health("serving", ready=True)
        self.troubles = {"parts": "reloading parts_engine", "other": ""}
        self.port = bound.getsockname()[1]

    def models(self):
        return list(self.troubles)

    def health(self, model=None):
        if isinstance(self.answer, Exception):
            raise self.answer
        if model is None:
            return self.answer
        if (trouble := self.troubles.get(model)) is None:
            return None
        return Health("serving", ready=not trouble, reason=trouble)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, method="GET", path="/ready", **options):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, **options)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(responder, "DEADLINE_S", 600)  # a machine may stall
    registry = CollectorRegistry()
    bound = bind("health", "127.0.0.1", 0)
    port = Port(bound)
    registry.register(ReadyMetric(port))
    with endpoint(bound, port, registry):
        yield port
    with pytest.raises(OSError, match="refused"):
        port.connect()


def whole(connection):
    """All that a connection still brings."""
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: connection.recv(4096), b""))
    return b""


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_probes_and_metrics(port):
    assert port.ask() == (200, b'{"state": "serving", "ready": true, "reason": "", "live": true}\n')
    assert b"m2f_ready 1.0" in port.ask(path="/metrics")[1]
    assert port.ask("HEAD") == (200, b"")
    assert json.loads(port.ask(path="/")[1]) == {"error": "/: there are /live, /ready, /ready/NAME and /metrics"}
    port.answer = Health("restarting", ready=False, reason="the server is restarting")
    assert [port.ask(path=path)[0] for path in ("/ready", "/live", "/x")] == [503, 200, 404]
    port.answer = Health("serving", ready=False, reason="r", live=False)
    assert port.ask(path="/live")[0] == 503


def test_a_probe_may_name_a_model(port):
    """A model that is repaired is no trouble of the others."""
    assert port.ask(path="/ready/other")[0] == 200
    status, body = port.ask(path="/ready/parts")
    assert (status, json.loads(body)["reason"]) == (503, "reloading parts_engine")
    status, body = port.ask(path="/ready/p%61rts_left")
    known = "no such public model; there are: parts, other"
    assert (status, json.loads(body)["error"]) == (404, f"/ready/p%61rts_left: {known}")
    assert port.ask(path="/live/parts")[0] == 404
    metrics = port.ask(path="/metrics")[1].decode().splitlines()
    assert [line for line in metrics if line.startswith("m2f_ready")] == [
        "m2f_ready 1.0", 'm2f_ready{model="parts"} 0.0', 'm2f_ready{model="other"} 1.0',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /ready HTTP/1.0\n\n", 200),  # bare line feeds
        (b"GET /ready HTTP/1.1\r\nHost: m2f\r\n\r\nand what nobody asked for", 200),
        (b"GET /ready HTTP/1.1\r\nCookie: " + 9000 * b"x", 200),  # the rest of the head is not read
        (b"POST /ready HTTP/1.1\r\nContent-Length: 9\r\n\r\n", 501),
        (b"DELETE /ready\r\n\r\n", 400),
        (b"\x16\x03\x01 a TLS hello \r\n\r\n", 400),
        (b"\r\n\r\n", None),
    ],
)
def test_other_requests(port, request_bytes, status):
    with port.connect() as connection:
        connection.sendall(request_bytes)
        answer = whole(connection)
    assert (b"%d" % status in answer) if status else (answer == b"")
    assert port.ask()[0] == 200


def test_a_request_may_come_byte_by_byte(port):
    with port.connect() as connection:
        for byte in READY:
            connection.sendall(bytes([byte]))
        assert whole(connection).startswith(b"HTTP/1.0 200 OK")


def test_many_connections_that_send_no_request_keep_no_probe_waiting(port):
    with contextlib.ExitStack() as stack:
        held = []
        for number in range(3 * MOST_CONNECTIONS):
            held.append(stack.enter_context(port.connect()))
            held[-1].sendall(READY[: number % len(READY)])
            if number % MOST_CONNECTIONS == 0:
                assert port.ask()[0] == 200
        assert port.ask()[0] == 200
        early = held[:MOST_CONNECTIONS]
        assert [whole(connection) for connection in early] == [b""] * MOST_CONNECTIONS  # closed
        held[-1].sendall(READY[(3 * MOST_CONNECTIONS - 1) % len(READY) :])
        assert whole(held[-1]).startswith(b"HTTP/1.0 200 OK")  # the youngest is left alone


def test_a_whole_request_has_a_deadline(port, monkeypatch):
    monkeypatch.setattr(responder, "DEADLINE_S", 0.3)
    with port.connect() as silent, port.connect() as slow:
        with contextlib.suppress(OSError):  # closed
            for byte in 1000 * READY[:5]:
                slow.sendall(bytes([byte]))
                time.sleep(0.01)
        assert whole(silent) == whole(slow) == b""


def test_clients_that_hang_up_leave_no_trace(port, capfd):
    threads = threading.active_count()
    for _ in range(20):
        with port.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # with a reset
            connection.sendall(READY)
        with port.connect() as connection:
            connection.sendall(READY[:9])
    assert port.ask()[0] == 200
    assert capfd.readouterr() == ("", "")
    assert threading.active_count() == threads


def test_a_client_that_reads_slowly_gets_all_and_one_that_does_not_read_is_left(monkeypatch):
    monkeypatch.setattr(responder, "DEADLINE_S", 600)
    answer = 20_000_000 * b"x"
    bound = bind("health", "127.0.0.1", 0)
    answerer = responder.Responder(bound, lambda _: answer)
    thread = threading.Thread(target=answerer.run)
    thread.start()
    try:
        with socket.create_connection(bound.getsockname(), timeout=20) as client:
            client.sendall(READY)
            assert whole(client) == answer
        monkeypatch.setattr(responder, "DEADLINE_S", 0.1)
        files = open_files()
        with socket.create_connection(bound.getsockname(), timeout=20) as client:
            client.sendall(READY)
            assert client.recv(1) == b"x"
            while open_files() > files + 1:  # the other end is open
                time.sleep(0.01)
            assert len(whole(client)) < len(answer) - 1
    finally:
        answerer.stop()
        thread.join()


def test_a_fault_costs_one_answer(port):
    port.answer = RuntimeError("a secret")
    assert port.ask() == (500, b"")
    port.answer = Health("serving", ready=True)
    assert port.ask()[0] == 200


def test_a_process_without_files_to_open_answers_when_it_has_some_again(port):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = open_files()
    with port.connect() as silent, contextlib.ExitStack() as stack:
        while open_files() < files + 2:  # the other end is open
            time.sleep(0.01)
        clients = [stack.enter_context(socket.socket()) for _ in range(2)]
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1, hard)
        )
        try:
            with contextlib.suppress(OSError):
                while True:
                    stack.enter_context(Path("/dev/null").open())
            for client in clients:
                client.settimeout(20)
                client.connect(("127.0.0.1", port.port))
                client.sendall(READY)
            assert whole(silent) == b""  # it made room
            assert all(whole(client).startswith(b"HTTP/1.0 200 OK") for client in clients)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert port.ask()[0] == 200
