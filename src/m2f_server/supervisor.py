"""Keep a server serving: start it, watch it, start it again when it ends, drain it when told to stop."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

from m2f_server import launch
from m2f_server.health import Health, endpoint
from m2f_server.serve_errors import CrashLoopError, PortTakenError, ServeError, StoppedError, WornOutError
from m2f_server.server import Server, reachable
from m2f_server.watch import Event, EventName, Watch

_LONG_RUN_S = 60.0  # a server that served for so long had a good start
_SHORT_RUNS = 5  # in a row, then more will not help
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 10.0
_LIVE_WITHIN_S = 30.0  # a round is a quarter of a second, and some calls to the server
_STOP_TIMEOUT_S = 5.0  # for a server that has nothing to do any more

disable_created_metrics()  # a second series beside each counter's


class Supervisor:
    """Runs `launch.serve` again and again, on the same ports.

    Args:
        options: arguments of `launch.serve`.
        health_host: where the probes' endpoint listens.
        health_port: its port; 0 picks a free one.
        drain_timeout: seconds that requests in flight get after the stop signal.
        announce: called once, when the first server answers right, with it and the address of `/ready`.
        event: called with the name of what happened and its circumstances, for the log.
        stop: set it to drain and end.
        hasten: set it to end without waiting for requests in flight.
    """

    def __init__(
        self,
        *,
        options: dict[str, Any],
        health_host: str,
        health_port: int,
        drain_timeout: float,
        announce: Callable[[Server, str], None],
        event: Event,
        stop: threading.Event,
        hasten: threading.Event,
    ) -> None:
        self._options = options
        self._health_host = health_host
        self._health_port = health_port
        self._drain_timeout = drain_timeout
        self._announce = announce
        self._log_event = event
        self._stop = stop
        self._hasten = hasten
        self._announced = False
        self._state = "starting"
        self._watch: Watch | None = None
        self._good_since: float | None = None  # when the server of the moment first answered right
        self._last_round = time.monotonic()
        self._metrics = CollectorRegistry()
        ready = Gauge("m2f_ready", "Whether requests should be sent here, as /ready says", registry=self._metrics)
        ready.set_function(lambda: self.health().ready)
        self._events = Counter("m2f_events", "What happened, as the log says", ["event"], registry=self._metrics)
        for name in get_args(EventName):  # from 0 on, so that the first is an increase, too
            self._events.labels(name)

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            ServeError: the first start did not work, or the server ends again and again (`CrashLoopError`).
        """
        with ExitStack() as stack:
            try:
                self._health_port = stack.enter_context(
                    endpoint(self._health_host, self._health_port, self.health, self._metrics)
                )
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise PortTakenError(
                    protocol="health", host=self._health_host, port=self._health_port, reason=reason
                ) from error
            self._run_servers()

    def health(self) -> Health:
        """Return what the probes are told."""
        watch = self._watch
        if self._stop.is_set():
            reason = "the server is told to stop"
        elif self._state == "serving" and watch is not None:
            reason = watch.trouble
        else:
            reason = f"the server is {self._state}"
        round_ago = time.monotonic() - self._last_round
        live = self._state != "serving" or round_ago < _LIVE_WITHIN_S
        return Health(state=self._state, ready=not reason, reason=reason, live=live)

    def _run_servers(self) -> None:
        short_runs = 0
        while not self._stop.is_set():
            started, self._good_since = False, None
            try:
                with launch.serve(**self._options, stop=self._stop) as server:
                    started = True
                    self._options |= {f"{protocol}_port": port for protocol, port in server.ports.items()}
                    self._serve(server)
                    return
            except StoppedError:
                return
            except ServeError as error:
                if not self._announced and not started:
                    raise
                long_run = self._good_since is not None and time.monotonic() - self._good_since >= _LONG_RUN_S
                short_runs = 1 if long_run else short_runs + 1
                self._wait_to_restart(error, short_runs)

    def _event(self, event: EventName, **circumstances: object) -> None:
        self._events.labels(event).inc()
        self._log_event(event, **circumstances)

    def _wait_to_restart(self, error: ServeError, short_runs: int) -> None:
        self._state, self._watch = "restarting", None
        if short_runs >= _SHORT_RUNS:
            raise CrashLoopError(times=short_runs, within=_LONG_RUN_S, last=error) from error
        delay = min(_FIRST_DELAY_S * 2 ** (short_runs - 1), _LONGEST_DELAY_S)
        self._event("server_ended", why=error, restart_in=delay, short_runs=short_runs)
        self._stop.wait(delay)

    def _serve(self, server: Server) -> None:
        """Watch a server until told to stop or it is worn out, then drain it."""
        watch = self._watch = Watch(server, self._event)
        self._last_round = time.monotonic()
        self._state = "serving"
        try:
            watch.run(self._stop, lambda: self._go_round(server))
        except WornOutError:
            self._drain(server, watch)
            raise
        self._drain(server, watch)

    def _drain(self, server: Server, watch: Watch) -> None:
        started = time.monotonic()
        self._state = "draining"
        self._event("draining", timeout=self._drain_timeout)
        all_answered = watch.drain(timeout=self._drain_timeout, hasten=self._hasten)
        self._event("drained", all_answered=all_answered, seconds=f"{time.monotonic() - started:.1f}")
        if all_answered:
            server.stop(timeout=_STOP_TIMEOUT_S)
        else:  # Triton would wait for them, too
            server.kill()

    def _go_round(self, server: Server) -> None:
        self._last_round = time.monotonic()
        if self._good_since is None and not self.health().reason:
            self._good_since = time.monotonic()
        if not self._announced and self._good_since is not None:
            self._announced = True
            self._announce(server, f"http://{reachable(self._health_host)}:{self._health_port}/ready")
