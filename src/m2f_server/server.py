"""A running server: its addresses, and how to wait for it and stop it."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from m2f_backend.calls import CallError
from m2f_server.access import Access
from m2f_server.addresses import reachable, with_port
from m2f_server.canary import takes_image
from m2f_server.configuration import Choice
from m2f_server.control import Control
from m2f_server.diagnose import diagnose, model_failures, tail, unfinished
from m2f_server.guard import ServerGuard
from m2f_server.pulse import Pulse
from m2f_server.serve_errors import (
    ModelLoadError,
    ServerCrashedError,
    ServerHungError,
    StartTimeoutError,
    StoppedError,
)
from m2f_server.server_log import ServerLog
from m2f_server.timing import Timing
from m2f_server.triton_2_51 import EXIT_TIMEOUT_S

STOP_TIMEOUT_S = EXIT_TIMEOUT_S + 5  # after SIGTERM; then the server is killed
_POLL_S = 0.05
_KILLED_WITHIN_S = 5.0


@dataclass(kw_only=True, eq=False)
class Server:
    """A running `tritonserver`, made by `serve`.

    Attributes:
        process: the server's process, which leads its own process group.
        guard: removes what the server leaves.
        identity: name by which the server answers.
        hosts: IP address to listen on by protocol (`http`, `grpc`, `metrics`).
        ports: port by protocol.
        log: the server's log.
        access: the secret of the restricted interfaces.
        tls: whether the gRPC port uses TLS.
        choice: the configuration of its engines.
        wanted: names of the models to load.
        needed: names among `wanted` of the exports, or of what `--load` names. The others are not ours: the server
            runs without them if they do not load.
        strict: whether the server is refused if one of `needed` does not load. If not, it runs without that model.
        models: names of the models that are ready.
        public: names of the public ensembles among them.
        engines: what computes the network, by model: `engine`, `version`, ...; engines outside Python are not in it.
        failures: reason by model for the models that did not load; causes come before their consequences.
        start_seconds: time from the start of the process until every model was ready.
        control: calls to this server, with the secret.
    """

    process: subprocess.Popen[bytes]
    guard: ServerGuard
    identity: str
    hosts: Mapping[str, str]
    ports: Mapping[str, int]
    log: ServerLog
    access: Access
    tls: bool
    choice: Choice
    wanted: Sequence[str]
    needed: frozenset[str] = frozenset()
    strict: bool = True
    models: list[str] = field(default_factory=list)
    public: list[str] = field(default_factory=list)
    engines: dict[str, dict[str, str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    start_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.control = Control(http_url=self.http_url, metrics_url=self._address("metrics"), access=self.access)

    @property
    def missing(self) -> list[str]:
        """Names of what is needed and did not load."""
        return sorted(self.needed.difference(self.models))

    @property
    def pid(self) -> int:
        """Id of the server's process."""
        return self.process.pid

    @property
    def http_url(self) -> str:
        """`host:port` of the HTTP API, as tritonclient takes it."""
        return self._address("http")

    @property
    def grpc_url(self) -> str:
        """`host:port` of the gRPC API, as tritonclient takes it."""
        return self._address("grpc")

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self._address('metrics')}/metrics"

    def _address(self, protocol: str) -> str:
        return with_port(reachable(self.hosts[protocol]), self.ports[protocol])

    def is_running(self) -> bool:
        """Return whether the server's process runs."""
        return self.process.poll() is None

    def read_log(self) -> str:
        """Return the end of this server's log so far, 1 MiB at most."""
        return self.log.read()

    def wait_ready(self, *, timeout: float, stop: threading.Event) -> None:
        """Wait until this server answers on HTTP and metrics, and its models are loaded.

        Args:
            timeout: largest number of seconds to wait.
            stop: event that another thread sets to end the wait.

        Raises:
            ModelLoadError: too little was loaded to serve, or less than what is needed.
            ServeError: the server ended (`diagnose` says why), the time is over, or `stop` was set.
        """
        started = time.monotonic()
        pulse = Pulse(self.http_url, self.pid, Timing())
        while self.is_running():
            if stop.is_set():
                raise StoppedError("told to stop before the models were ready")
            if (models := self._ready_models()) is not None:
                self._take_stock(models)
                self.start_seconds = time.monotonic() - started
                return
            with suppress(OSError):
                pulse.beat(loading=True)
            if pulse.frozen:
                self.kill()
                raise ServerHungError(f"{pulse.trouble}; the end of its log:\n{tail(self.read_log())}")
            if time.monotonic() - started > timeout:
                log = self.read_log()
                still = "".join(f"; {name} is still being loaded" for name in unfinished(log)[:1])
                raise StartTimeoutError(f"not ready after {timeout:g} s{still}; the end of its log:\n{tail(log)}")
            time.sleep(_POLL_S)
        self.wait()

    def wait(self) -> None:
        """Wait until the server ends by itself, which is always an error.

        Raises:
            ServerCrashedError: the server ended after it was ready. An earlier failure to load a model in its log is
                stale.
            ServeError: the server ended before it was ready; `diagnose` says why.
        """
        returncode = self.process.wait()
        if self.models:
            raise ServerCrashedError(returncode=returncode, log_tail=tail(self.read_log()))
        raise diagnose(log=self.read_log(), returncode=returncode)

    def stop(self, *, timeout: float = STOP_TIMEOUT_S) -> None:
        """Send SIGTERM, wait at most `timeout` seconds, then kill the server; `serve` removes its stubs."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self._wait_for_the_killed()

    def kill(self) -> None:
        """Kill the server and its stubs."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._wait_for_the_killed()

    def _wait_for_the_killed(self) -> None:
        try:
            self.process.wait(_KILLED_WITHIN_S)
        except subprocess.TimeoutExpired as error:
            raise ServerHungError(
                f"tritonserver (process {self.pid}) survives SIGKILL: it waits in the kernel for a driver or a disk"
            ) from error

    def _ready_models(self) -> list[str] | None:
        """Return the names of the loaded models, or None if something is still being loaded."""
        try:
            if json.loads(self.control.call("GET", "/v2"))["name"] != self.identity:
                return None  # another server has this port
            states = {entry["name"]: entry.get("state") for entry in self.control.index()}
            self.control.metrics()  # this port starts last
        except (CallError, ValueError, LookupError, TypeError):  # also if another program answers
            return None
        return None if "LOADING" in states.values() else sorted(n for n, state in states.items() if state == "READY")

    def _take_stock(self, models: list[str]) -> None:
        """Note what is loaded, and refuse the server if that is too little."""
        self.models = models
        self.public = [model for model in models if takes_image(self.control.config(model))]
        self.engines = self.control.engines()
        self.failures = model_failures(self.read_log())
        for name in sorted(set(self.wanted).difference(models)):
            self.failures.setdefault(name, "the log does not say why")
        if self.failures and (not self.public or (self.strict and self.missing)):
            self.models = []
            raise ModelLoadError(self.failures)
