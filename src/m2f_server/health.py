"""The supervisor's own HTTP endpoint: `/live` and `/ready` for probes, `/metrics` for Prometheus."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


@dataclass(frozen=True)
class Health:
    """What the probes are told.

    Attributes:
        state: `starting`, `serving`, `draining` or `restarting`.
        ready: whether requests should be sent here.
        reason: why not; empty when ready.
        live: whether the supervisor still goes round; where it does not, it has to be restarted from outside.
    """

    state: str
    ready: bool
    reason: str = ""
    live: bool = True


@contextmanager
def endpoint(host: str, port: int, health: Callable[[], Health], metrics: CollectorRegistry) -> Iterator[int]:
    """Answer `GET /live` and `GET /ready` with 200 or 503 and a JSON body, `GET /metrics` with text; yield the port.

    Args:
        host: the address to listen on.
        port: 0 picks a free one.
        health: called for each request of a probe.
        metrics: what is exported.

    Raises:
        OSError: it cannot be listened on.
    """

    class Handler(_Handler):
        """A request."""

        def health(self) -> Health:
            return health()

        def metrics(self) -> bytes:
            return generate_latest(metrics)

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers; what it answers is up to `health`."""

    timeout = 5  # a client that says nothing does not keep a thread for ever
    server_version = "m2f"
    sys_version = ""

    def health(self) -> Health:
        """Return the state of this moment."""
        raise NotImplementedError

    def metrics(self) -> bytes:
        """Return what is exported."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer a probe, or Prometheus."""
        if self.path == "/metrics":
            self._answer(HTTPStatus.OK, self.metrics(), CONTENT_TYPE_LATEST)
            return
        health = self.health()
        good = {"/live": health.live, "/ready": health.ready}.get(self.path)
        if good is None:
            self._answer_json(HTTPStatus.NOT_FOUND, {"error": f"{self.path}: there are /live, /ready and /metrics"})
        else:
            self._answer_json(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, asdict(health))

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing: a line for each probe would bury the others."""

    def _answer_json(self, status: HTTPStatus, body: dict[str, object]) -> None:
        self._answer(status, json.dumps(body).encode() + b"\n", "application/json")

    def _answer(self, status: HTTPStatus, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
