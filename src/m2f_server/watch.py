"""Look after one running server: lost stubs, a canary, the drain at its end."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, Protocol

import psutil

from m2f_backend.calls import CallError
from m2f_server.canary import Canary, Kind, Verdict
from m2f_server.serve_errors import ServeError, ServerHungError, WornOutError
from m2f_server.server import Server
from m2f_server.stubs import Stub, Stubs

TICK_S = 0.25  # how often the process table is looked at
_CANARY_PERIOD_S = 5.0
_CANARY_SHARE = 5  # it rests at least as many times as long as it took: a slow engine is there for others
_RELOAD_ATTEMPTS = 3
_RELOAD_WITHIN_S = 120.0  # one that hangs for so long is not tried again
_LAST_WORK_S = 30.0  # of the stubs that a reload leaves behind
_MOST_RELOADS = 100  # Triton 2.51 keeps threads and shared memory of each stub that died at work
_FAILURES = 3  # of the canary in a row, with nothing to reload, until the server is restarted
_SETTLE_S = 0.2  # answers are on their way when the model that gave them is gone

EventName = Literal[
    "ready",
    "busy",
    "canary_failed",
    "stub_lost",
    "reloaded",
    "reload_failed",
    "server_ended",
    "draining",
    "drained",
    "drain_failed",
]


class Event(Protocol):
    """A function to tell what happened."""

    def __call__(self, event: EventName, **circumstances: object) -> None:
        """Write it down, with its circumstances."""


class Watch:
    """One server, from ready to stopped.

    Args:
        server: it.
        event: called with what happened and its circumstances, for the log.
    """

    def __init__(self, server: Server, event: Event) -> None:
        self._server = server
        self._control = server.control
        self._event = event
        self._stubs = Stubs(server.pid)
        self._canary = Canary(server.control, server.models, self._stubs.processor_seconds)
        self._verdict = Verdict(Kind.FAILS, "the first canary is under way")
        self._lock = threading.Lock()
        self._healing: set[str] = set()
        self._left_behind: dict[Stub, float] = {}  # to when it may work
        self._reloads = 0
        self._failures = 0
        self._beyond_help = ""
        self._ask_now = threading.Event()
        self._ended = threading.Event()

    @property
    def trouble(self) -> str:
        """Why no requests should be sent to the server; empty when it serves."""
        if self._healing:
            return f"reloading {', '.join(sorted(self._healing))}"
        return self._verdict.reason if self._verdict.kind is Kind.FAILS else ""

    def run(self, stop: threading.Event, tick: Callable[[], None]) -> None:
        """Watch until told to stop, calling `tick` each time round.

        Raises:
            WornOutError: it has been mended often enough; drain it and start another.
            ServeError: the server has ended, or is beyond help and has been killed.
        """
        thread = threading.Thread(target=self._ask_for_ever, daemon=True)
        thread.start()
        try:
            while not stop.wait(TICK_S):
                self._look()
                tick()
        except ServeError as error:  # from now on it does not serve, though there is much to clean up first
            self._verdict = Verdict(Kind.FAILS, str(error))
            raise
        finally:
            self._ended.set()
            self._ask_now.set()

    def drain(self, *, timeout: float, hasten: threading.Event) -> bool:
        """Take no new requests and wait for those in flight; return whether all were answered.

        Args:
            timeout: seconds to wait at most.
            hasten: set to wait no longer.
        """
        deadline = time.monotonic() + timeout
        try:
            entrances = self._entrances()
            for model in entrances:
                self._control.unload(model, timeout=max(1.0, deadline - time.monotonic()))
            while self._unloading(entrances):
                if time.monotonic() > deadline or hasten.wait(0.05):
                    return False
        except CallError as error:
            self._event("drain_failed", why=error)
            return False
        time.sleep(_SETTLE_S)
        return True

    def _look(self) -> None:
        """See whether all processes run."""
        if not self._server.is_running():
            self._server.wait()
        if self._beyond_help or self._server_is_stopped():
            self._server.kill()
            raise ServerHungError(self._beyond_help or "tritonserver was stopped (SIGSTOP)")
        if self._reloads > _MOST_RELOADS:
            raise WornOutError(f"models were reloaded {self._reloads} times")
        self._end_left_behind()
        healing = set(self._healing)  # before the processes: one healed after this moment is seen to live
        lost = {stub: why for stub, why in self._stubs.lost().items() if stub.model not in healing}
        if lost:
            with suppress(CallError):  # the next round will see what is wrong with the server
                self._heal_loaded(lost)

    def _heal_loaded(self, lost: dict[Stub, str]) -> None:
        """Reload the models that miss a stub, unless somebody has unloaded them."""
        loaded = self._control.loaded()
        for stub in lost:
            if (stub.model, stub.version) not in loaded:
                self._stubs.forget(stub)
        for model in {stub.model for stub in lost if (stub.model, stub.version) in loaded}:
            stubs = [stub for stub in lost if stub.model == model]
            self._heal(model, stubs, lost[stubs[0]])

    def _heal(self, model: str, stubs: list[Stub], why: str) -> None:
        """Kill what is left of some stubs of a model, and reload it beside all that goes on."""
        with self._lock:
            if model in self._healing:
                return
            self._healing.add(model)
        self._event("stub_lost", model=model, pid=",".join(str(stub.pid) for stub in stubs), why=why)
        for stub in stubs:
            self._stubs.kill(stub)
        threading.Thread(target=self._reload, args=(model,), daemon=True).start()

    def _end_left_behind(self) -> None:
        """End the other instances of models that were reloaded: Triton 2.51 keeps them where one of them has died."""
        for stub, until in list(self._left_behind.items()):
            if time.monotonic() > until:
                self._stubs.kill(stub)
                del self._left_behind[stub]

    def _reload(self, model: str) -> None:
        try:
            self._try_to_reload(model)
        except Exception as error:  # the model would count as under repair for ever
            self._beyond_help = f"the reload of {model} broke: {error!r}"
            raise

    def _try_to_reload(self, model: str) -> None:
        started = time.monotonic()
        left_behind = self._stubs.of(model)
        for attempt in range(1, _RELOAD_ATTEMPTS + 1):
            try:
                self._control.reload(model)
                self._left_behind = dict.fromkeys(left_behind, time.monotonic() + _LAST_WORK_S) | self._left_behind
                self._event("reloaded", model=model, seconds=f"{time.monotonic() - started:.1f}")
                break
            except CallError as error:
                self._event("reload_failed", model=model, attempt=attempt, why=error)
                if self._ended.wait(1.0):
                    return
                if attempt == _RELOAD_ATTEMPTS or time.monotonic() - started > _RELOAD_WITHIN_S:
                    self._beyond_help = f"{model} cannot be reloaded: {error}"
                    break
        self._reloads += 1
        self._verdict = Verdict(Kind.FAILS, f"the canary after the reload of {model} is under way")
        self._healing.discard(model)
        self._ask_now.set()

    def _ask_for_ever(self) -> None:
        """Ask the canary again and again, sooner after a reload."""
        while not self._ended.is_set():
            self._ask_now.clear()
            if not self._healing:  # else it would fail, and take a second for it
                try:
                    self._ask()
                except Exception as error:  # without a canary nobody would know
                    self._beyond_help = f"the canary broke: {error!r}"
                    raise
            rest = 0.0 if self._verdict.kind is Kind.FAILS else _CANARY_SHARE * self._canary.seconds
            self._ask_now.wait(max(_CANARY_PERIOD_S, rest))

    def _ask(self) -> None:
        reloads = self._reloads
        verdict = self._canary.ask()
        disturbed = self._healing or self._reloads != reloads
        if not disturbed and not self._ended.is_set():
            self._judge(verdict)

    def _judge(self, verdict: Verdict) -> None:
        """Remember a verdict; reload the model to blame, or have the server restarted when that does not help."""
        was, self._verdict = self._verdict, verdict
        if verdict.kind is not Kind.FAILS:
            if verdict.kind is Kind.SERVES:
                self._failures = 0
            if was.kind is not verdict.kind:
                self._event("ready" if verdict.kind is Kind.SERVES else "busy", why=verdict.reason)
            return
        self._failures += 1
        self._event("canary_failed", why=verdict.reason, times=self._failures)
        stubs = self._stubs.of(verdict.blame) if verdict.blame else []
        if self._failures >= _FAILURES:
            self._beyond_help = f"{self._failures} canaries in a row failed; the last: {verdict.reason}"
        elif verdict.blame and stubs:
            self._heal(verdict.blame, stubs, verdict.reason)

    def _server_is_stopped(self) -> bool:
        try:
            return psutil.Process(self._server.pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    def _entrances(self) -> list[str]:
        """Return the models that requests come in by: those that are no step of another."""
        models = sorted({name for name, _ in self._control.loaded()})
        configs = [self._control.config(model) for model in models]
        schedules = [config["ensemble_scheduling"] for config in configs if "ensemble_scheduling" in config]
        steps = {step["model_name"] for schedule in schedules for step in schedule["step"]}
        return [model for model in models if model not in steps]

    def _unloading(self, models: list[str]) -> bool:
        return any(
            entry["name"] in models and entry.get("state") in ("READY", "UNLOADING") for entry in self._control.index()
        )
