"""A running server: its addresses, its readiness, its end."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from m2f_backend.calls import CallError
from m2f_server.access import Access
from m2f_server.control import Control
from m2f_server.diagnose import diagnose, tail
from m2f_server.serve_errors import ServerCrashedError, ServerHungError, StartTimeoutError, StoppedError

EXIT_TIMEOUT_S = 3  # what Triton gives requests in flight after SIGTERM; it waits as long for idle HTTP connections
STOP_TIMEOUT_S = EXIT_TIMEOUT_S + 5  # then it is killed
_POLL_S = 0.05
_KILLED_WITHIN_S = 5.0
_LAST_BYTES = 2**16  # of a log that may have grown for months


def reachable(host: str) -> str:
    """Return an address under which this machine reaches a server that listens on `host`."""
    return "127.0.0.1" if host == "0.0.0.0" else host


class Server:
    """A running `tritonserver`, made by `serve`.

    Attributes:
        hosts: protocol to the address it listens on.
        ports: protocol (`http`, `grpc`, `metrics`) to port.
        pid: the server's process, leader of its own process group.
        log_path: the server's log; a temporary file that goes with the server, unless a file was asked for.
        models: names of the models that are ready.
        access: what the restricted interfaces want to see.
        control: calls to it, with that.
        tls: whether the gRPC port speaks TLS.
        start_seconds: from the start of the process until every model was ready.
    """

    def __init__(
        self,
        *,
        process: subprocess.Popen[bytes],
        identity: str,
        hosts: Mapping[str, str],
        ports: Mapping[str, int],
        log_path: Path,
        log_start: int = 0,
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
        self.control = Control(http_url=self.http_url, metrics_url=self._address("metrics"), access=access)
        self._log_start = log_start
        self._identity = identity
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
        return reachable(self.hosts[protocol])

    def is_running(self) -> bool:
        """Tell whether the server's process lives."""
        return self._process.poll() is None

    def read_log(self, *, last: int | None = None) -> str:
        """Return the server's log so far, or its `last` bytes; not what others wrote to the file before it."""
        try:
            with self.log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - last) if last else self._log_start)
                return log.read().decode(errors="replace")
        except OSError as error:  # somebody has moved it
            return f"{self.log_path}: {error.strerror}"

    def wait_ready(self, *, timeout: float, stop: threading.Event) -> None:
        """Block until this server answers on HTTP and metrics and says that all its models are ready.

        Raises:
            ServeError: the server ended (`diagnose` says why), `timeout` seconds are over, or `stop` was set.
        """
        started = time.monotonic()
        while self.is_running():
            if stop.is_set():
                raise StoppedError("told to stop before the models were ready")
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
            ServeError: always; `diagnose` says why it did not start. In the log of one that did, a model that failed
                to load is an old story.
        """
        returncode = self._process.wait()
        if self.models:
            raise ServerCrashedError(returncode=returncode, log_tail=tail(self.read_log(last=_LAST_BYTES)))
        raise diagnose(log=self.read_log(), returncode=returncode)

    def stop(self, *, timeout: float = STOP_TIMEOUT_S) -> None:
        """Ask the server to end, wait at most `timeout` seconds, then kill it (`serve` sees to its stubs)."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._wait_for_the_killed()

    def kill(self) -> None:
        """End the server and its stubs at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._wait_for_the_killed()

    def _wait_for_the_killed(self) -> None:
        try:
            self._process.wait(_KILLED_WITHIN_S)
        except subprocess.TimeoutExpired as error:
            raise ServerHungError(
                f"tritonserver (process {self.pid}) outlives SIGKILL: it waits in the kernel, for a driver or a disk"
            ) from error

    def _ready_models(self) -> list[str] | None:
        """Return the names of the models, or None while anything is not ready."""
        try:
            if json.loads(self.control.call("GET", "/v2"))["name"] != self._identity:
                return None  # someone else came first on this port
            self.control.call("GET", "/v2/health/ready")
            index = self.control.index()
            self.control.metrics()  # started last
        except (CallError, ValueError, LookupError, TypeError):  # or what answers is no Triton
            return None
        return sorted(entry["name"] for entry in index) if all(e.get("state") == "READY" for e in index) else None
