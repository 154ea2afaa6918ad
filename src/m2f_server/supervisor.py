"""Keep a server serving: start it, watch it, restart it when it ends, and drain it when told to stop."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics

from m2f.errors import M2FError
from m2f_backend.calls import CannotCallError
from m2f_server.addresses import reachable, with_port
from m2f_server.busy import BusyMetric
from m2f_server.canary import Kind, ask_once
from m2f_server.events import OF_A_MODEL, OF_A_PUBLIC_MODEL, Event, EventName
from m2f_server.health import Health, ReadyMetric, endpoint
from m2f_server.launch import LOOPBACK
from m2f_server.outlet import DROPPED
from m2f_server.ports import bind
from m2f_server.remains import sweep_dead
from m2f_server.serve_errors import (
    CrashLoopError,
    ServerCrashedError,
    ServerHungError,
    ShortageError,
    StoppedError,
    WornOutError,
)
from m2f_server.server import Server
from m2f_server.timing import Timing
from m2f_server.watch import Watch

_ENDS = (M2FError, OSError, MemoryError)  # what ends a server
_SHORTAGE = (ShortageError, CannotCallError, OSError, MemoryError)  # this machine lacks something for a while

disable_created_metrics()  # they would add a second series to each counter


@dataclass(kw_only=True, eq=False)
class Supervisor:
    """Starts one server after another, on the same ports.

    Attributes:
        start: starts a server for the length of a `with` block, as `launch.serve` with the caller's options. Called
            with `strict` and `stop`, and from the second server on with `http_port`, `grpc_port` and `metrics_port`. A
            server that no client may reach is started with `host` and `monitor_host` too.
        health_host: IP address of the health endpoint.
        health_port: port of the health endpoint; 0 picks a free one.
        drain_delay: seconds for which everything is still served after the stop signal, while `/ready` says 503, so
            that callers find out.
        drain_timeout: seconds in which requests in flight are answered after `drain_delay`.
        announce: called once, when the first canary succeeds, with the server and the URL of `/ready`.
        event: called with each event and its circumstances, for the log.
        stop: event that another thread sets to drain the server and end.
        hasten: event that another thread sets to end without `drain_delay`, and without waiting for requests in flight.
        timing: how long to wait.
    """

    start: Callable[..., AbstractContextManager[Server]]
    health_host: str
    health_port: int
    drain_delay: float = 0.0
    drain_timeout: float
    announce: Callable[[Server, str], None]
    event: Event
    stop: threading.Event
    hasten: threading.Event
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        self._ports: dict[str, int] = {}
        self._announced = False
        self._leave_at: float | None = None  # the end of `drain_delay`, as `time.monotonic`
        self._drained: dict[str, Any] = {}  # how the last drain went, until it is logged
        self._state = "starting"
        self._server: Server | None = None
        self._watch: Watch | None = None
        self._models: list[str] = []  # public
        self._last_round = time.monotonic()
        self._metrics = CollectorRegistry()
        self._metrics.register(ReadyMetric(self))
        self._metrics.register(DROPPED)
        self._busy = BusyMetric(lambda: self._server.control.busy_seconds() if self._server else {})
        self._metrics.register(self._busy)
        labels = ["event", "model"]
        self._events = Counter("m2f_events", "What happened, as the log says", labels, registry=self._metrics)
        self._restarts = Counter("m2f_restarts", "Servers started in place of one that ended", registry=self._metrics)
        for name in set(get_args(EventName)).difference(OF_A_MODEL, OF_A_PUBLIC_MODEL):
            self._count_from_zero([name], [""])

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            ServeError: the first start failed, or the health port cannot be listened on.
            CrashLoopError: several servers in a row were not ready or never answered right.
        """
        with ExitStack() as stack:
            bound = stack.enter_context(bind("health", self.health_host, self.health_port))
            self.health_port = bound.getsockname()[1]
            stack.enter_context(endpoint(bound, self, self._metrics))
            stack.enter_context(self._busy.fresh(self.timing.busy_period_s))
            self._run_servers()
        self._tell_drained()

    def health(self, model: str | None = None) -> Health | None:
        """Return the answer to a probe.

        Args:
            model: name of a public ensemble; None for the whole server.

        Returns:
            The answer, or None if the server serves and has no such public ensemble.
        """
        watch = self._watch
        if self.stop.is_set():
            reason = "the server is told to stop"
        elif self._state != "serving" or watch is None:
            reason = f"the server is {self._state}"
        elif model is None:
            reason = watch.trouble
        elif model in (troubles := watch.troubles):
            reason = troubles[model]
        else:
            return None
        round_ago = time.monotonic() - self._last_round
        live = self._state != "serving" or round_ago < self.timing.live_within_s
        return Health(state=self._state, ready=not reason, reason=reason, live=live)

    def models(self) -> list[str]:
        """Return the names of the public ensembles, or those of the last server while none serves."""
        if (watch := self._watch) is not None:
            self._models = [name for name in watch.troubles if name]
        return self._models

    def _run_servers(self) -> None:
        bad = 0  # servers in a row that were not ready or never answered right
        while not self.stop.is_set():
            started, self._watch = False, None
            for name in sweep_dead():
                self._event("swept", server=name)
            try:
                with self.start(**self._ports, strict=not self._announced, stop=self.stop) as server:
                    started = True
                    self._ports = {f"{protocol}_port": port for protocol, port in server.ports.items()}
                    self._serve(server)
                    return
            except StoppedError:
                return
            except _ENDS as error:
                self._tell_drained()
                if not self._announced and not started:
                    raise
                self._state = "restarting"
                good_since = self._watch.good_since if self._watch else None
                if good_since is not None:
                    bad = 0
                elif not isinstance(error, _SHORTAGE):
                    bad += 1
                if bad >= self.timing.bad_servers:
                    if not self._clients_end_it(error, started=started):
                        raise CrashLoopError(times=bad, last=error) from error
                    bad = 0
                self._wait_to_restart(error, bad, good_since)

    def _count_from_zero(self, events: Iterable[EventName], models: Iterable[str]) -> None:
        """Export counters before the first event, so that the first event is an increase."""
        for event, model in product(events, models):
            self._events.labels(event, model)

    def _event(self, event: EventName, **circumstances: Any) -> None:
        looks = circumstances["times"] if event == "look_failed" else 1  # one log line stands for many of these
        self._events.labels(event, circumstances.get("model", "")).inc(looks)
        self.event(event, **circumstances)

    def _wait_to_restart(self, error: Exception, bad: int, good_since: float | None) -> None:
        delay = min(self.timing.first_delay_s * 2**bad, self.timing.longest_delay_s)
        if good_since is not None and time.monotonic() - good_since >= self.timing.long_run_s:
            delay = 0.0
        self._event("server_ended", why=error, restart_in=delay, never_right=bad)
        if not self.stop.wait(delay):
            self._restarts.inc()

    def _clients_end_it(self, error: Exception, *, started: bool) -> bool:
        """Return whether a server that no client can reach answers right, although one that clients reached ended."""
        if not started and not isinstance(error, (ServerCrashedError, ServerHungError)):  # no port was open
            return False
        apart = {"host": LOOPBACK, "monitor_host": LOOPBACK, "http_port": 0, "grpc_port": 0, "metrics_port": 0}
        try:
            with self.start(**apart, stop=self.stop) as server:
                verdict = ask_once(server.control, server.models, self.timing)
        except StoppedError:
            return True
        except _ENDS:
            return False
        answers = verdict.kind is Kind.SERVES
        self._event("tried_alone", answers=answers, why=verdict.reason)
        return answers

    def _serve(self, server: Server) -> None:
        """Watch a server until told to stop or it had too many reloads, then drain it."""
        self._count_from_zero(OF_A_MODEL, server.models)
        self._count_from_zero(OF_A_PUBLIC_MODEL, server.public)
        self._server = server
        watch = self._watch = Watch(server, self._event, self.timing)
        self._last_round = time.monotonic()
        self._state = "serving"
        try:
            watch.run(self._told_to_leave, lambda: self._go_round(server))
        except WornOutError:
            self._drain(server, watch)
            raise
        self._drain(server, watch)

    def _told_to_leave(self, seconds: float) -> bool:
        """Wait so many seconds at most, and return whether the stop signal came and `drain_delay` is over."""
        if not self.stop.wait(seconds):
            return False
        if self._leave_at is None:
            self._leave_at = time.monotonic() + self.drain_delay
            if self.drain_delay:
                self._event("leaving", drain_delay=self.drain_delay)
        left = self._leave_at - time.monotonic()
        return left <= 0 or self.hasten.wait(min(seconds, left))

    def _drain(self, server: Server, watch: Watch) -> None:
        started = time.monotonic()
        self._state = "draining"
        self._event("draining", timeout=self.drain_timeout)
        all_answered = watch.drain(timeout=self.drain_timeout, hasten=self.hasten)
        self._drained = {"all_answered": all_answered, "seconds": f"{time.monotonic() - started:.1f}"}
        if all_answered:
            server.stop(timeout=self.timing.stop_timeout_s)
        else:  # SIGTERM would wait for the requests too
            server.kill()

    def _tell_drained(self) -> None:
        """Log the drain once the server is gone: whoever reads the line may use the ports."""
        if self._drained:
            self._event("drained", **self._drained)
            self._drained = {}

    def _is_ready(self) -> bool:
        health = self.health()
        return health is not None and health.ready

    def _go_round(self, server: Server) -> None:
        self._last_round = time.monotonic()
        if not self._announced and self._is_ready():
            self._announced = True
            self.announce(server, f"http://{with_port(reachable(self.health_host), self.health_port)}/ready")
