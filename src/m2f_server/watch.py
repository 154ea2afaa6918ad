"""Watch one running server: replace lost stubs, watch its public ensembles, and drain it at the end."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from m2f.ensembles import read_ensemble
from m2f.errors import M2FError
from m2f_backend.calls import CallError
from m2f_server import processes
from m2f_server.events import Event
from m2f_server.missed import CANNOT_LOOK, Missed
from m2f_server.public_models import PublicModels
from m2f_server.pulse import Pulse
from m2f_server.repairs import Repairs
from m2f_server.serve_errors import ServerHungError, WornOutError
from m2f_server.server import Server
from m2f_server.stubs import Stub, Stubs
from m2f_server.timing import Timing

_AGAIN_S = 1.0


class Watch:
    """Watches one server from ready to stopped.

    Args:
        server: the running server to watch.
        event: called with each event and its circumstances, for the log.
        timing: how long to wait.

    Attributes:
        stubs: the server's Python processes.
    """

    def __init__(self, server: Server, event: Event, timing: Timing | None = None) -> None:
        self._timing = timing or Timing()
        self._server = server
        self._control = server.control
        self._event = event
        self._ended = threading.Event()
        self.stubs = Stubs(server.pid)
        self._pulse = Pulse(server.http_url, server.pid, self._timing)
        self._missed = Missed(lambda times, why: event("look_failed", why=why, times=times), self._timing.miss_period_s)
        self._repairs = Repairs(
            control=server.control,
            stubs=self.stubs,
            event=event,
            missed=self._missed,
            timing=self._timing,
            ended=self._ended,
            done=self._reloaded,
        )
        self._models = PublicModels(
            control=server.control,
            missing=server.missing,
            stubs=self.stubs,
            repairs=self._repairs,
            event=event,
            missed=self._missed,
            timing=self._timing,
        )
        self._trouble = ""
        for model, why in server.failures.items():
            event("not_loaded", model=model, why=why)

    @property
    def trouble(self) -> str:
        """Why clients should send no requests to the server; empty if every public ensemble serves."""
        troubles = self.troubles
        return "; ".join(dict.fromkeys(filter(None, troubles.values()))) if troubles else "no public model is loaded"

    @property
    def troubles(self) -> dict[str, str]:
        """Why clients should send a public ensemble no requests, by name; an empty text if it serves."""
        whole = self._trouble or self._pulse.trouble  # of the whole server
        return {name: whole or trouble for name, trouble in self._models.troubles.items()}

    @property
    def good_since(self) -> float | None:
        """When an ensemble first answered a canary right, as `time.monotonic`; None if none has."""
        return self._models.good_since

    def run(self, told_to_end: Callable[[float], bool], tick: Callable[[], None]) -> None:
        """Watch the server until told to end.

        Args:
            told_to_end: waits the given number of seconds at most, and returns whether the watch is to end.
            tick: called about four times a second.

        Raises:
            WornOutError: the server had too many reloads; drain it and start another one.
            ServeError: the server has ended, or cannot be repaired and was killed.
        """
        try:
            while True:
                for look in (self._models.start, self._look_at_server, self._look_at_stubs, self._look_at_guard):
                    try:
                        look()
                    except CANNOT_LOOK as error:
                        self._missed.add(error)
                self._missed.tell()
                tick()
                if told_to_end(self._timing.tick_s):
                    break
        except M2FError:  # the server does not serve while its remains are cleaned up
            self._trouble = "the server has ended"
            raise
        finally:
            self._ended.set()
            self._models.stop()
            self._pulse.close()

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

    def _reloaded(self, model: str, error: str) -> None:
        self._models.reloaded(model, error)

    def _look_at_server(self) -> None:
        """Check that the server runs and lives; raise if another one is needed."""
        if not self._server.is_running():
            self._server.wait()
        if why := self._repairs.broken or self._models.beyond_help or self._frozen():
            self._server.kill()
            raise ServerHungError(why)
        if self._repairs.reloads > self._timing.most_reloads:
            raise WornOutError(f"models were reloaded {self._repairs.reloads} times")

    def _frozen(self) -> str:
        """Return why only the end of the server helps, or an empty string."""
        process = processes.read(self._server.pid)
        if process is not None and process.state == processes.STOPPED:
            return "tritonserver was stopped (SIGSTOP)"
        self._pulse.beat(loading=bool(self._repairs.under_way))
        return self._pulse.trouble if self._pulse.frozen else ""

    def _look_at_stubs(self) -> None:
        """Check that all stubs run, and reload the models of those that do not."""
        self._repairs.end_left_behind()
        healing = set(self._repairs.under_way)  # read first: a model healed later has running stubs
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
            self._repairs.heal(model, stubs, lost[stubs[0]])

    def _entrances(self) -> list[str]:
        """Return the models that clients call: those that are no step of an ensemble."""
        models = sorted({name for name, _ in self._control.loaded()})
        ensembles = [ensemble for model in models if (ensemble := read_ensemble(self._control.config(model)))]
        steps = {step for ensemble in ensembles for step in ensemble.steps}
        return [model for model in models if model not in steps]

    def _unloading(self, models: list[str]) -> bool:
        return any(
            entry["name"] in models and entry.get("state") in ("READY", "UNLOADING") for entry in self._control.index()
        )
