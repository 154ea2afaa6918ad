"""A running server: its addresses, its readiness, its end."""

import http.client
import json
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from m2f_server.access import Access
from m2f_server.diagnose import diagnose, tail
from m2f_server.errors import StartTimeoutError

EXIT_TIMEOUT_S = 10  # what Triton gives requests in flight after SIGTERM
STOP_TIMEOUT_S = EXIT_TIMEOUT_S + 5  # then it is killed
_POLL_S = 0.05


class Server:
    """A running `tritonserver`, made by `serve`.

    Attributes:
        hosts: protocol to the address it listens on.
        ports: protocol (`http`, `grpc`, `metrics`) to port.
        pid: the server's process, leader of its own process group.
        log_path: the server's log; a temporary file that goes with the server, unless a file was asked for.
        models: names of the models that are ready.
        access: what the restricted interfaces want to see.
        tls: whether the gRPC port speaks TLS.
        start_seconds: from the start of the process until every model was ready.
    """

    def __init__(
        self,
        *,
        process: subprocess.Popen[bytes],
        name: str,
        hosts: Mapping[str, str],
        ports: Mapping[str, int],
        log_path: Path,
        access: Access,
        tls: bool,
    ) -> None:
        self.hosts = dict(hosts)
        self.ports = dict(ports)
        self.pid = process.pid
        self.log_path = log_path
        self.models: list[str] = []
        self.start_seconds = 0.0
        self.access = access
        self.tls = tls
        self._name = name
        self._process = process

    @property
    def http_url(self) -> str:
        """`host:port`, the form that tritonclient takes."""
        return self._address("http")

    @property
    def grpc_url(self) -> str:
        """`host:port`, the form that tritonclient takes."""
        return self._address("grpc")

    @property
    def metrics_url(self) -> str:
        """Full address of the Prometheus metrics."""
        return f"http://{self._address('metrics')}/metrics"

    def _address(self, protocol: str) -> str:
        return f"{self._client_host(protocol)}:{self.ports[protocol]}"

    def _client_host(self, protocol: str) -> str:
        host = self.hosts[protocol]
        return "127.0.0.1" if host == "0.0.0.0" else host

    def is_running(self) -> bool:
        """Tell whether the server's process lives."""
        return self._process.poll() is None

    def read_log(self) -> str:
        """Return the server's log so far."""
        return self.log_path.read_text(errors="replace")

    def wait_ready(self, *, timeout: float) -> None:
        """Block until this server answers on HTTP and metrics and says that all its models are ready.

        Raises:
            ServeError: the server ended (`diagnose` says why), or `timeout` seconds are over.
        """
        started = time.monotonic()
        while self.is_running():
            if models := self._ready_models():
                self.models = models
                self.start_seconds = time.monotonic() - started
                return
            if time.monotonic() - started > timeout:
                raise StartTimeoutError(f"not ready after {timeout:g} s; the end of its log:\n{tail(self.read_log())}")
            time.sleep(_POLL_S)
        self.wait()

    def wait(self) -> None:
        """Block until the server ends by itself, which it is not meant to do.

        Raises:
            ServeError: always; `diagnose` says why it ended.
        """
        returncode = self._process.wait()
        raise diagnose(log=self.read_log(), returncode=returncode)

    def stop(self) -> None:
        """Ask the server to end, wait at most `STOP_TIMEOUT_S` seconds, then kill it (`serve` sees to its stubs)."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ready_models(self) -> list[str] | None:
        """Return the names of the models, or None while anything is not ready."""
        try:
            metadata = self._fetch("http", "GET", "/v2")
            if self._fetch("http", "GET", "/v2/health/ready") is None or not metadata:
                return None
            if json.loads(metadata)["name"] != self._name:  # someone else's server came first on this port
                return None
            index = json.loads(self._fetch("http", "POST", "/v2/repository/index") or "[]")
            if self._fetch("metrics", "GET", "/metrics") is None:  # started last
                return None
        except (OSError, http.client.HTTPException):
            return None
        return sorted(entry["name"] for entry in index) if all(e.get("state") == "READY" for e in index) else None

    def _fetch(self, protocol: str, method: str, path: str) -> bytes | None:
        """Return the body of a 200 answer, else None."""
        connection = http.client.HTTPConnection(self._client_host(protocol), self.ports[protocol], timeout=5)
        try:
            connection.request(method, path, headers=self.access.headers)
            response = connection.getresponse()
            body = response.read()
            return body if response.status == http.client.OK else None
        finally:
            connection.close()
