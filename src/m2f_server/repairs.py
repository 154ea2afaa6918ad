"""Reload models whose processes are lost or hang, while the server serves the other models."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from m2f_backend.calls import CallError
from m2f_server.control import Control
from m2f_server.events import Event
from m2f_server.missed import CANNOT_LOOK, Missed, start_thread
from m2f_server.stubs import Stub, Stubs
from m2f_server.timing import Timing

_AGAIN_S = 1.0
_MOST_DOUBLINGS = 16  # of a rest; far above the longest rest
_T = TypeVar("_T")


class Repairs:
    """Reloads models of one server, each in a thread of its own.

    After a reload in vain a model rests: 10 s, 20 s, 40 s, ... and at most 5 minutes.

    Args:
        control: calls to the server.
        stubs: the server's Python processes.
        event: called with each event and its circumstances, for the log.
        missed: counts what this machine lacked.
        timing: how long to wait.
        ended: event that another thread sets when the server is no longer watched.
        done: called with the name of a model and the error of its reload, which is empty after a good one. The model
            counts as under repair until `done` returns.

    Attributes:
        under_way: names of the models that are being reloaded.
        reloads: number of reloads for which a process was killed or lost; each may leave memory in the server.
        broken: why no repair is possible any more; empty if repairs are possible.
    """

    def __init__(
        self,
        *,
        control: Control,
        stubs: Stubs,
        event: Event,
        missed: Missed,
        timing: Timing,
        ended: threading.Event,
        done: Callable[[str, str], None],
    ) -> None:
        self._control = control
        self._stubs = stubs
        self._event = event
        self._missed = missed
        self._timing = timing
        self._ended = ended
        self._done = done
        self._lock = threading.Lock()
        self._left_behind: dict[Stub, float] = {}  # to the time at which it is killed
        self._finished: Counter[str] = Counter()  # reloads by model
        self._in_vain: Counter[str] = Counter()  # reloads in a row
        self._rest_until: dict[str, float] = {}
        self.under_way: set[str] = set()
        self.reloads = 0
        self.broken = ""

    def heal(self, model: str, stubs: Sequence[Stub] = (), why: str = "", *, in_vain: bool = False) -> bool:
        """Kill some stubs of a model, and reload the model in place. Return whether this was begun.

        Args:
            model: name of the model. While it is being reloaded, or rests, nothing happens.
            stubs: the stubs to kill; the others end when the new ones are ready.
            why: why the stubs are killed, for the log.
            in_vain: whether the reload counts as one in vain until `well` is called.
        """
        begun = self._begin(model, self._control.reload, stubs, in_vain)
        if begun and stubs:
            self._event("stub_lost", model=model, pid=",".join(str(stub.pid) for stub in stubs), why=why)
        return begun

    def load(self, model: str) -> None:
        """Load a model that is not loaded."""
        self._begin(model, self._control.load, (), False)

    def _begin(self, model: str, load: Callable[[str], None], stubs: Sequence[Stub], in_vain: bool) -> bool:
        with self._lock:
            if model in self.under_way or time.monotonic() < self._rest_until.get(model, 0.0):
                return False
            self.under_way.add(model)
        try:
            for stub in stubs:
                self._stubs.kill(stub)
            start_thread(self._repair, model, load, bool(stubs), in_vain)
        except CANNOT_LOOK:
            self.under_way.discard(model)
            raise
        return True

    def well(self, models: Iterable[str]) -> None:
        """Take note that models work."""
        for model in models:
            del self._in_vain[model]

    def finished(self, models: Iterable[str]) -> int:
        """Return the number of reloads of some models so far."""
        return sum(self._finished[model] for model in models)

    def end_left_behind(self) -> None:
        """Kill the old stubs of reloaded models when their time is over; `triton_2_51` says why."""
        for stub, until in list(self._left_behind.items()):
            if time.monotonic() > until:
                self._stubs.kill(stub)
                del self._left_behind[stub]

    def _repair(self, model: str, load: Callable[[str], None], costs: bool, in_vain: bool) -> None:
        try:
            error = self._try_to_load(model, load)
        except Exception as broken:  # else the model would count as under repair for ever
            self.broken = f"the reload of {model} broke: {broken!r}"
            raise
        if error is None:
            return
        self.reloads += costs
        self._finished[model] += 1
        self._rest(model, in_vain=in_vain or bool(error))
        self._done(model, error)
        self.under_way.discard(model)

    def _rest(self, model: str, *, in_vain: bool) -> None:
        self._in_vain[model] = self._in_vain[model] + 1 if in_vain else 0
        rest = self._timing.first_rest_s * 2.0 ** min(self._in_vain[model] - 1, _MOST_DOUBLINGS) if in_vain else 0.0
        self._rest_until[model] = time.monotonic() + min(rest, self._timing.longest_rest_s)

    def _try_to_load(self, model: str, load: Callable[[str], None]) -> str | None:
        """Load a model, and return the last error; empty if the model is loaded, None if the server has ended."""
        started = time.monotonic()
        left_behind = self._patiently(lambda: self._stubs.of(model))
        for attempt in range(1, self._timing.reload_attempts + 1):
            try:
                self._patiently(lambda: load(model))
            except CallError as error:
                self._event("reload_failed", model=model, attempt=attempt, why=error)
                if self._ended.wait(_AGAIN_S):
                    return None
                late = time.monotonic() - started > self._timing.reload_within_s
                if attempt == self._timing.reload_attempts or late:
                    return str(error)
            else:
                until = time.monotonic() + self._timing.left_behind_s
                self._left_behind = dict.fromkeys(left_behind, until) | self._left_behind
                self._event("reloaded", model=model, seconds=f"{time.monotonic() - started:.1f}")
                break
        return ""

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Return what a call returns, which is repeated for as long as this machine lacks something for it."""
        while True:
            try:
                return call()
            except CANNOT_LOOK as error:
                self._missed.add(error)
                if self._ended.wait(_AGAIN_S):
                    raise
