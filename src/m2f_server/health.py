"""Serve `/live`, `/ready` and `/ready/NAME` for probes and `/metrics` for Prometheus, on the supervisor's own port."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Protocol
from urllib.parse import unquote

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from m2f_server.responder import Responder


@dataclass(frozen=True)
class Health:
    """The answer to a probe.

    Attributes:
        state: `starting`, `serving`, `draining` or `restarting`.
        ready: whether clients should send requests to the server, or to the model that the probe names.
        reason: why they should not; empty if they should. It has fixed words and names of models only: the port has
            no secret, and an error may quote what a client sent.
        live: whether the supervisor works. If not, it must be restarted from outside.
    """

    state: str
    ready: bool
    reason: str = ""
    live: bool = True


class Source(Protocol):
    """What the probes are answered from."""

    def health(self, model: str | None = None) -> Health | None:
        """Return the answer to a probe: of the whole server, or of one model. None if there is no such model."""

    def models(self) -> list[str]:
        """Return the names of the models that a probe may name."""


class ReadyMetric(Collector):
    """The metric `m2f_ready`: of the whole server without a label, and of each model with the label `model`."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        metric = Metric("m2f_ready", "Whether requests should be sent here, as /ready and /ready/NAME say", "gauge")
        for model in (None, *self._source.models()):
            if (health := self._source.health(model)) is not None:
                metric.add_sample("m2f_ready", {"model": model} if model else {}, float(health.ready))
        yield metric


@contextmanager
def endpoint(bound: socket.socket, source: Source, metrics: CollectorRegistry) -> Iterator[None]:
    """Answer `GET /live`, `/ready` and `/ready/NAME` with 200 or 503 and JSON, and `GET /metrics` with text.

    Args:
        bound: socket that is bound to the address to listen on; closed at the end.
        source: asked for each probe.
        metrics: the metrics to export.
    """

    def answer(request: bytes) -> bytes:
        try:
            return _Answer(request, source, metrics).wfile.getvalue()
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

    def __init__(self, request: bytes, source: Source, metrics: CollectorRegistry) -> None:
        self._source = source
        self._metrics = metrics
        self.client_address = ("", 0)  # in place of the base class's own __init__, which reads from a socket
        self.rfile, self.wfile = io.BytesIO(request), io.BytesIO()
        self.handle()

    def do_GET(self) -> None:
        """Answer a probe, or Prometheus."""
        if self.path == "/metrics":
            self._send(HTTPStatus.OK, generate_latest(self._metrics), CONTENT_TYPE_LATEST)
            return
        probe, _, model = self.path.removeprefix("/").partition("/")
        if probe not in ("live", "ready") or (model and probe == "live"):
            known = "there are /live, /ready, /ready/NAME and /metrics"
            self._send_json(HTTPStatus.NOT_FOUND, {"error": f"{self.path}: {known}"})
        elif (health := self._source.health(unquote(model) if model else None)) is None:
            known = ", ".join(self._source.models()) or "none"
            self._send_json(HTTPStatus.NOT_FOUND, {"error": f"{self.path}: no such public model; there are: {known}"})
        else:
            good = health.live if probe == "live" else health.ready
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
