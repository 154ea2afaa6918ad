"""Serve `/live` and `/ready` for probes and `/metrics` for Prometheus, on the supervisor's own port."""

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from m2f_server.responder import Responder


@dataclass(frozen=True)
class Health:
    """The answer to a probe.

    Attributes:
        state: `starting`, `serving`, `draining` or `restarting`.
        ready: whether clients should send requests to this server.
        reason: why the server is not ready; empty if it is. It has fixed words and names of models only: the port has
            no secret, and an error may quote what a client sent.
        live: whether the supervisor works. If not, it must be restarted from outside.
    """

    state: str
    ready: bool
    reason: str = ""
    live: bool = True


@contextmanager
def endpoint(bound: socket.socket, health: Callable[[], Health], metrics: CollectorRegistry) -> Iterator[None]:
    """Answer `GET /live` and `GET /ready` with 200 or 503 and JSON, and `GET /metrics` with text.

    Args:
        bound: socket that is bound to the address to listen on; closed at the end.
        health: called for each probe.
        metrics: the metrics to export.
    """

    def answer(request: bytes) -> bytes:
        try:
            return _Answer(request, health, metrics).wfile.getvalue()
        except Exception:  # else no probe would be answered any more
            return b"HTTP/1.0 500 Internal Server Error\r\n\r\n"

    responder = Responder(bound, answer)
    thread = threading.Thread(target=responder.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        responder.stop()
        thread.join()


class _Answer(BaseHTTPRequestHandler):
    """Answers a request that has been read; `wfile` has the answer."""

    server_version = "m2f"
    sys_version = ""
    rfile: io.BytesIO
    wfile: io.BytesIO

    def __init__(self, request: bytes, health: Callable[[], Health], metrics: CollectorRegistry) -> None:
        self._health = health
        self._metrics = metrics
        self.client_address = ("", 0)  # in place of the base class's own __init__, which reads from a socket
        self.rfile, self.wfile = io.BytesIO(request), io.BytesIO()
        self.handle()

    def do_GET(self) -> None:
        """Answer a probe, or Prometheus."""
        if self.path == "/metrics":
            self._send(HTTPStatus.OK, generate_latest(self._metrics), CONTENT_TYPE_LATEST)
            return
        health = self._health()
        good = {"/live": health.live, "/ready": health.ready}.get(self.path)
        if good is None:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": f"{self.path}: there are /live, /ready and /metrics"})
        else:
            self._send_json(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, asdict(health))

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Write no log line: probes come every few seconds."""

    def _send_json(self, status: HTTPStatus, body: dict[str, object]) -> None:
        self._send(status, json.dumps(body).encode() + b"\n", "application/json")

    def _send(self, status: HTTPStatus, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
