"""Watch one public ensemble: send its canaries, and act on their verdicts."""

import threading
import time
from collections.abc import Callable, Sequence

from m2f_backend.calls import CallError
from m2f_server.canary import Canary, Kind, Readiness, Verdict
from m2f_server.control import Control
from m2f_server.events import Event, EventName
from m2f_server.missed import CANNOT_LOOK, Missed
from m2f_server.repairs import Repairs
from m2f_server.stubs import Stub, Stubs
from m2f_server.timing import Timing


class PublicWatch:
    """Watches one public ensemble, in a thread of its own, so that the wait for one model delays no other.

    Args:
        canary: the canary of the ensemble.
        steps: names of the models that the ensemble needs.
        control: calls to the server.
        stubs: the server's Python processes.
        repairs: reloads models.
        event: called with each event and its circumstances, for the log.
        missed: counts what this machine lacked.
        timing: how long to wait.
        others_serve: returns whether another public ensemble serves. Then the server is not restarted for this one.

    Attributes:
        good_since: when the ensemble first answered a canary right, as `time.monotonic`; None if it has not.
        beyond_help: why reloads do not help; empty if they may help.
        broken: why no canary is sent any more; empty if canaries are sent.
    """

    def __init__(
        self,
        canary: Canary | Readiness,
        steps: Sequence[str],
        *,
        control: Control,
        stubs: Stubs,
        repairs: Repairs,
        event: Event,
        missed: Missed,
        timing: Timing,
        others_serve: Callable[[], bool],
    ) -> None:
        self._canary = canary
        self._steps = steps
        self._control = control
        self._stubs = stubs
        self._repairs = repairs
        self._event = event
        self._missed = missed
        self._timing = timing
        self._others_serve = others_serve
        self._verdict = Verdict(Kind.FAILS, "the first canary is under way")
        self._failures = 0
        self._unloadable = ""  # step whose last reload failed
        self._ask_now = threading.Event()
        self._stopped = threading.Event()
        self.good_since: float | None = None
        self.beyond_help = ""
        self.broken = ""

    @property
    def trouble(self) -> str:
        """Why clients should send the ensemble no requests; empty if it serves."""
        if under_way := self._under_way():
            return f"reloading {', '.join(sorted(under_way))}"
        return self._verdict.reason if self._verdict.kind is Kind.FAILS else ""

    def run(self) -> None:
        """Send canaries until `stop` is called; a reload makes the next one due at once."""
        while not self._stopped.is_set():
            self._ask_now.clear()
            if self._under_way():  # a canary during a reload would fail
                self._ask_now.wait(self._timing.tick_s)
                continue
            try:
                self._ask()
            except CANNOT_LOOK as error:
                self._missed.add(error)
            except Exception as error:  # else no canary would be sent any more, unnoticed
                self.broken = f"the canary of {self._canary.name} broke: {error!r}"
                raise
            rest = 0.0 if self._verdict.kind is Kind.FAILS else self._timing.canary_rest * self._canary.seconds
            self._ask_now.wait(max(self._timing.canary_period_s, rest))

    def stop(self) -> None:
        """Send no more canaries."""
        self._stopped.set()
        self._ask_now.set()

    def reloaded(self, model: str, error: str) -> None:
        """Take note of the reload of a model.

        Args:
            model: name of the model.
            error: why it failed; empty if it did not.
        """
        if model not in self._steps:
            return
        self._unloadable = model if error else ""
        if error:
            self.beyond_help = f"{model} cannot be reloaded: {error}"
            self._verdict = Verdict(Kind.FAILS, f"{model} cannot be reloaded")
        else:
            self._verdict = Verdict(Kind.FAILS, f"the canary after the reload of {model} is under way")
        self._ask_now.set()

    def _under_way(self) -> set[str]:
        return self._repairs.under_way & set(self._steps)

    def _ask(self) -> None:
        finished = self._repairs.finished(self._steps)
        verdict = self._canary.ask()
        disturbed = self._under_way() or self._repairs.finished(self._steps) != finished
        if not disturbed and not self._stopped.is_set() and not self._was_unloaded(verdict):
            self._judge(verdict)

    def _was_unloaded(self, verdict: Verdict) -> bool:
        """Return whether the ensemble is no longer loaded, which explains a failed canary."""
        if verdict.kind is not Kind.FAILS or not self._canary.name:
            return False
        try:
            return self._canary.name not in {name for name, _ in self._control.loaded()}
        except CANNOT_LOOK:
            raise
        except CallError:  # the server does not answer
            return False

    def _judge(self, verdict: Verdict) -> None:
        """Act on a verdict: reload a step, or give the ensemble up after several failures in a row."""
        was, self._verdict = self._verdict, verdict
        if verdict.kind is not Kind.FAILS:
            if self.good_since is None:
                self.good_since = time.monotonic()
            if verdict.kind is Kind.SERVES:
                self._failures, self.beyond_help = 0, ""
                self._repairs.well(self._steps)
            if was.kind is not verdict.kind:
                event: EventName = "ready" if verdict.kind is Kind.SERVES else "busy"
                self._event(event, model=self._canary.name, why=verdict.why)
            return
        self._failures += 1
        self._event("canary_failed", model=self._canary.name, why=verdict.why, times=self._failures)
        stubs = self._stubs.of(verdict.blame) if verdict.blame else []
        if self._failures >= self._timing.failures:
            times = f"{self._failures} canaries of {self._canary.name} in a row failed"
            self.beyond_help = f"{times}; the last: {verdict.why}"
            if self._others_serve():
                self._try_again(verdict, stubs)
        elif verdict.blame and stubs:
            self._repairs.heal(verdict.blame, stubs, verdict.why)

    def _try_again(self, verdict: Verdict, stubs: list[Stub]) -> None:
        """Reload one step that may be the cause. The next canary tells whether it was."""
        suspect = self._unloadable or verdict.blame
        for step in [suspect] if suspect else self._steps:
            guilty = stubs if step == verdict.blame else []
            if self._repairs.heal(step, guilty, verdict.why, in_vain=True):
                break
