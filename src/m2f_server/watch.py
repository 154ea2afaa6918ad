"""Watch one running server: replace lost stubs, send canaries, and drain it at the end."""

import errno
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, Protocol, TypeVar

from m2f.errors import M2FError
from m2f_backend.calls import CallError, CannotCallError
from m2f_server import processes
from m2f_server.canary import Canary, Kind, Verdict
from m2f_server.pulse import Pulse
from m2f_server.serve_errors import ServerHungError, WornOutError
from m2f_server.server import Server
from m2f_server.stubs import Stub, Stubs
from m2f_server.timing import Timing

EventName = Literal[
    "ready", "busy", "canary_failed", "stub_lost", "reloaded", "reload_failed", "guard_lost", "look_failed",
    "server_ended", "tried_alone", "swept", "draining", "drained", "drain_failed",
]  # fmt: skip
CANNOT_LOOK = (CannotCallError, OSError, MemoryError)  # this machine lacks something; the server may be well
_AGAIN_S = 1.0
_T = TypeVar("_T")


class Event(Protocol):
    """A function that logs an event."""

    def __call__(self, event: EventName, **circumstances: object) -> None:
        """Log an event with its circumstances."""


class Watch:
    """Watches one server from ready to stopped.

    Args:
        server: the running server to watch.
        event: called with each event and its circumstances, for the log.
        timing: how long to wait.

    Attributes:
        stubs: the server's Python processes.
        good_since: when the server first answered a canary right, as `time.monotonic`; None if it has not.
    """

    def __init__(self, server: Server, event: Event, timing: Timing | None = None) -> None:
        self._timing = timing or Timing()
        self._server = server
        self._control = server.control
        self._event = event
        self.stubs = Stubs(server.pid)
        self._canary = Canary(server.control, server.models, self.stubs.processor_seconds, self._timing)
        self._pulse = Pulse(server.http_url, server.pid, self._timing)
        self._missed = _Missed(event, self._timing.miss_period_s)
        self._verdict = Verdict(Kind.FAILS, "the first canary is under way")
        self._lock = threading.Lock()
        self._healing: set[str] = set()
        self._left_behind: dict[Stub, float] = {}  # to the time at which it is killed
        self._reloads = 0
        self._failures = 0
        self._beyond_help = ""
        self._asks = False
        self.good_since: float | None = None
        self._ask_now = threading.Event()
        self._ended = threading.Event()

    @property
    def trouble(self) -> str:
        """Why clients should send no requests to the server; empty if it serves."""
        if self._pulse.trouble:
            return self._pulse.trouble
        if self._healing:
            return f"reloading {', '.join(sorted(self._healing))}"
        return self._verdict.reason if self._verdict.kind is Kind.FAILS else ""

    def run(self, stop: threading.Event, tick: Callable[[], None]) -> None:
        """Watch the server until told to stop.

        Args:
            stop: event that another thread sets to end the watch.
            tick: called about four times a second.

        Raises:
            WornOutError: the server had too many reloads; drain it and start another one.
            ServeError: the server has ended, or cannot be repaired and was killed.
        """
        try:
            while True:
                for look in (self._look_at_canary, self._look_at_server, self._look_at_stubs, self._look_at_guard):
                    try:
                        look()
                    except CANNOT_LOOK as error:
                        self._missed.add(error)
                self._missed.tell()
                tick()
                if stop.wait(self._timing.tick_s):
                    break
        except M2FError:  # the server does not serve while its remains are cleaned up
            self._verdict = Verdict(Kind.FAILS, "the server has ended")
            raise
        finally:
            self._ended.set()
            self._ask_now.set()

    def drain(self, *, timeout: float, hasten: threading.Event) -> bool:
        """Take no new requests, wait for those in flight, and return whether all were answered.

        Args:
            timeout: largest number of seconds to wait.
            hasten: event that another thread sets to end the wait.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                all_answered = self._try_to_drain(deadline, hasten)
                break
            except CANNOT_LOOK as error:
                self._missed.add(error)
                if time.monotonic() > deadline or hasten.wait(_AGAIN_S):
                    return False
            except CallError as error:
                self._event("drain_failed", why=error)
                return False
        time.sleep(self._timing.settle_s)
        return all_answered

    def _try_to_drain(self, deadline: float, hasten: threading.Event) -> bool:
        entrances = self._entrances()
        for model in entrances:
            self._control.unload(model, timeout=max(1.0, deadline - time.monotonic()))
        while self._unloading(entrances):
            if time.monotonic() > deadline or hasten.wait(0.05):
                return False
        return True

    def _look_at_canary(self) -> None:
        """Start to send canaries."""
        if not self._asks:
            _start(self._ask_for_ever)
            self._asks = True

    def _look_at_server(self) -> None:
        """Check that the server runs and lives; raise if another one is needed."""
        if not self._server.is_running():
            self._server.wait()
        if why := self._beyond_help or self._frozen():
            self._server.kill()
            raise ServerHungError(why)
        if self._reloads > self._timing.most_reloads:
            raise WornOutError(f"models were reloaded {self._reloads} times")

    def _frozen(self) -> str:
        """Return why only the end of the server helps, or an empty string."""
        process = processes.read(self._server.pid)
        if process is not None and process.state == processes.STOPPED:
            return "tritonserver was stopped (SIGSTOP)"
        self._pulse.beat(loading=bool(self._healing))
        return self._pulse.trouble if self._pulse.frozen else ""

    def _look_at_stubs(self) -> None:
        """Check that all stubs run, and reload the models of those that do not."""
        self._end_left_behind()
        healing = set(self._healing)  # read first: a model healed later has running stubs
        lost = {stub: why for stub, why in self.stubs.lost().items() if stub.model not in healing}
        if lost:
            with suppress(CallError):  # the next look finds what is wrong with the server
                self._heal_loaded(lost)

    def _look_at_guard(self) -> None:
        """Replace the guarding process if it was lost."""
        if self._server.guard.renew():
            self._event("guard_lost")

    def _heal_loaded(self, lost: dict[Stub, str]) -> None:
        """Reload the models of lost stubs. Forget stubs whose model was unloaded."""
        loaded = self._control.loaded()
        for stub in lost:
            if (stub.model, stub.version) not in loaded:
                self.stubs.forget(stub)
        for model in {stub.model for stub in lost if (stub.model, stub.version) in loaded}:
            stubs = [stub for stub in lost if stub.model == model]
            self._heal(model, stubs, lost[stubs[0]])

    def _heal(self, model: str, stubs: list[Stub], why: str) -> None:
        """Kill some stubs of a model, and reload the model while the server serves others."""
        with self._lock:
            if model in self._healing:
                return
            self._healing.add(model)
        try:
            for stub in stubs:
                self.stubs.kill(stub)
            _start(self._reload, model)
        except CANNOT_LOOK:
            self._healing.discard(model)
            raise
        self._event("stub_lost", model=model, pid=",".join(str(stub.pid) for stub in stubs), why=why)

    def _end_left_behind(self) -> None:
        """Kill the old stubs of reloaded models when their time is over; `triton_2_51` says why."""
        for stub, until in list(self._left_behind.items()):
            if time.monotonic() > until:
                self.stubs.kill(stub)
                del self._left_behind[stub]

    def _reload(self, model: str) -> None:
        try:
            self._try_to_reload(model)
        except Exception as error:  # else the model would count as under repair for ever
            self._beyond_help = f"the reload of {model} broke: {error!r}"
            raise

    def _try_to_reload(self, model: str) -> None:
        started = time.monotonic()
        left_behind = self._patiently(lambda: self.stubs.of(model))
        for attempt in range(1, self._timing.reload_attempts + 1):
            try:
                self._patiently(lambda: self._control.reload(model))
                until = time.monotonic() + self._timing.left_behind_s
                self._left_behind = dict.fromkeys(left_behind, until) | self._left_behind
                self._event("reloaded", model=model, seconds=f"{time.monotonic() - started:.1f}")
                break
            except CallError as error:
                self._event("reload_failed", model=model, attempt=attempt, why=error)
                if self._ended.wait(1.0):
                    return
                late = time.monotonic() - started > self._timing.reload_within_s
                if attempt == self._timing.reload_attempts or late:
                    self._beyond_help = f"{model} cannot be reloaded: {error}"
                    break
        self._reloads += 1
        self._verdict = Verdict(Kind.FAILS, f"the canary after the reload of {model} is under way")
        self._healing.discard(model)
        self._ask_now.set()

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Return what a call returns, which is repeated for as long as this machine lacks something for it."""
        while True:
            try:
                return call()
            except CANNOT_LOOK as error:
                self._missed.add(error)
                if self._ended.wait(_AGAIN_S):
                    raise

    def _ask_for_ever(self) -> None:
        """Send canaries until the watch ends; a reload makes the next one due at once."""
        while not self._ended.is_set():
            self._ask_now.clear()
            if not self._healing:  # a canary during a reload would fail
                try:
                    self._ask()
                except CANNOT_LOOK as error:
                    self._missed.add(error)
                except Exception as error:  # else no canary would be sent any more, unnoticed
                    self._beyond_help = f"the canary broke: {error!r}"
                    raise
            rest = 0.0 if self._verdict.kind is Kind.FAILS else self._timing.canary_rest * self._canary.seconds
            self._ask_now.wait(max(self._timing.canary_period_s, rest))

    def _ask(self) -> None:
        reloads = self._reloads
        verdict = self._canary.ask()
        disturbed = self._healing or self._reloads != reloads
        if not disturbed and not self._ended.is_set():
            self._judge(verdict)

    def _judge(self, verdict: Verdict) -> None:
        """Act on a verdict: reload the model to blame, or give up the server after several failures in a row."""
        was, self._verdict = self._verdict, verdict
        if verdict.kind is not Kind.FAILS:
            if self.good_since is None:
                self.good_since = time.monotonic()
            if verdict.kind is Kind.SERVES:
                self._failures = 0
            if was.kind is not verdict.kind:
                self._event("ready" if verdict.kind is Kind.SERVES else "busy", why=verdict.why)
            return
        self._failures += 1
        self._event("canary_failed", why=verdict.why, times=self._failures)
        stubs = self.stubs.of(verdict.blame) if verdict.blame else []
        if self._failures >= self._timing.failures:
            self._beyond_help = f"{self._failures} canaries in a row failed; the last: {verdict.why}"
        elif verdict.blame and stubs:
            self._heal(verdict.blame, stubs, verdict.why)

    def _entrances(self) -> list[str]:
        """Return the models that clients call: those that are no step of an ensemble."""
        models = sorted({name for name, _ in self._control.loaded()})
        configs = [self._control.config(model) for model in models]
        schedules = [config["ensemble_scheduling"] for config in configs if "ensemble_scheduling" in config]
        steps = {step["model_name"] for schedule in schedules for step in schedule["step"]}
        return [model for model in models if model not in steps]

    def _unloading(self, models: list[str]) -> bool:
        return any(
            entry["name"] in models and entry.get("state") in ("READY", "UNLOADING") for entry in self._control.index()
        )


class _Missed:
    """Counts the looks for which this machine lacked something, and logs them now and then.

    Args:
        event: called with the number of looks and the latest reason.
        period: seconds between two log lines.
    """

    def __init__(self, event: Event, period: float) -> None:
        self._event = event
        self._period = period
        self._lock = threading.Lock()
        self._times = 0
        self._why = ""
        self._next_at = 0.0

    def add(self, error: BaseException) -> None:
        """Count a look."""
        with self._lock:
            self._times += 1
            self._why = str(error) or type(error).__name__

    def tell(self) -> None:
        """Log the looks since the last line, if it is time to."""
        if self._times and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + self._period
            with self._lock:
                times, self._times = self._times, 0
            self._event("look_failed", why=self._why, times=times)


def _start(target: Callable[..., None], *args: object) -> None:
    """Start a thread.

    Raises:
        OSError: this machine has no room for a thread now.
    """
    try:
        threading.Thread(target=target, args=args, daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
