"""Serve `/live` and `/ready` for probes and `/metrics` for Prometheus, on the supervisor's own port."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


@dataclass(frozen=True)
class Health:
    """The answer to a probe.

    Attributes:
        state: `starting`, `serving`, `draining` or `restarting`.
        ready: whether clients should send requests to this server.
        reason: why the server is not ready; empty if it is.
        live: whether the supervisor works. If not, it must be restarted from outside.
    """

    state: str
    ready: bool
    reason: str = ""
    live: bool = True


@contextmanager
def endpoint(host: str, port: int, health: Callable[[], Health], metrics: CollectorRegistry) -> Iterator[int]:
    """Answer `GET /live` and `GET /ready` with 200 or 503 and JSON, and `GET /metrics` with text; yield the port.

    Args:
        host: address to listen on.
        port: port to listen on; 0 picks a free one.
        health: called for each probe.
        metrics: the metrics to export.

    Raises:
        OSError: the address cannot be listened on.
    """
    server = ThreadingHTTPServer((host, port), partial(_Handler, health, metrics))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    timeout = 5  # a silent client does not keep a thread
    server_version = "m2f"
    sys_version = ""

    def __init__(self, health: Callable[[], Health], metrics: CollectorRegistry, *connection: Any) -> None:
        self._health = health
        self._metrics = metrics
        super().__init__(*connection)

    def do_GET(self) -> None:
        """Answer a probe, or Prometheus."""
        if self.path == "/metrics":
            self._answer(HTTPStatus.OK, generate_latest(self._metrics), CONTENT_TYPE_LATEST)
            return
        health = self._health()
        good = {"/live": health.live, "/ready": health.ready}.get(self.path)
        if good is None:
            self._answer_json(HTTPStatus.NOT_FOUND, {"error": f"{self.path}: there are /live, /ready and /metrics"})
        else:
            self._answer_json(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, asdict(health))

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Write no log line: probes come every few seconds."""

    def _answer_json(self, status: HTTPStatus, body: dict[str, object]) -> None:
        self._answer(status, json.dumps(body).encode() + b"\n", "application/json")

    def _answer(self, status: HTTPStatus, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
