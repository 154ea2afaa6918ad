"""Keep a watch on each public ensemble that is loaded: models come and go while a server runs."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from m2f.ensembles import read_ensemble
from m2f_backend.calls import CallError
from m2f_server.canary import Canary, Readiness, takes_image
from m2f_server.control import Control
from m2f_server.events import Event
from m2f_server.missed import CANNOT_LOOK, Missed, start_thread
from m2f_server.public_watch import PublicWatch
from m2f_server.repairs import Repairs
from m2f_server.stubs import Stubs
from m2f_server.timing import Timing

_GONE = (None, "UNAVAILABLE")  # states of a model that is not loaded


class PublicModels:
    """The public ensembles of one server, each under a watch of its own.

    A server without a public ensemble has one watch without a name, which asks all models for their own readiness.

    Args:
        control: calls to the server.
        missing: names of exports that did not load with the server. They are loaded again and again.
        stubs: the server's Python processes.
        repairs: loads models.
        event: called with each event and its circumstances, for the log.
        missed: counts what this machine lacked.
        timing: how long to wait.

    Raises:
        CallError: the server does not answer.
    """

    def __init__(
        self,
        *,
        control: Control,
        missing: Iterable[str],
        stubs: Stubs,
        repairs: Repairs,
        event: Event,
        missed: Missed,
        timing: Timing,
    ) -> None:
        self._control = control
        self._missing = set(missing)
        self._stubs = stubs
        self._repairs = repairs
        self._event = event
        self._missed = missed
        self._timing = timing
        self._known: dict[str, PublicWatch | None] = {}  # every loaded model; None for one that is no public ensemble
        self._watches: dict[str, PublicWatch] = {}
        self._started: set[PublicWatch] = set()
        self._looks = False
        self._stopped = threading.Event()
        self._broken = ""
        self._find()
        if not self._watches:
            self._watches[""] = self._watch(Readiness(control), sorted(self._known))

    @property
    def troubles(self) -> dict[str, str]:
        """Why clients should send an ensemble no requests, by name; an empty text if it serves."""
        missing = {name: f"{name} did not load" for name in sorted(self._missing)}
        return {**missing, **{name: watch.trouble for name, watch in self._watches.items()}}

    @property
    def good_since(self) -> float | None:
        """When an ensemble first answered a canary right, as `time.monotonic`; None if none has."""
        good = [watch.good_since for watch in self._watches.values() if watch.good_since is not None]
        return min(good, default=None)

    @property
    def beyond_help(self) -> str:
        """Why only another server helps: no ensemble can be repaired. Empty if one serves or may be repaired."""
        broken = [why for watch in self._watches.values() if (why := watch.broken)]
        if self._broken or broken:
            return self._broken or broken[0]
        lost = [watch.beyond_help for watch in self._watches.values()]
        return "; ".join(dict.fromkeys(lost)) if all(lost) else ""

    def start(self) -> None:
        """Start the threads that are not started yet.

        Raises:
            OSError: this machine has no room for a thread now.
        """
        for watch in self._watches.values():
            if watch not in self._started:
                start_thread(watch.run)
                self._started.add(watch)
        if not self._looks:
            start_thread(self._look_for_ever)
            self._looks = True

    def stop(self) -> None:
        """End the threads."""
        self._stopped.set()
        for watch in self._watches.values():
            watch.stop()

    def reloaded(self, model: str, error: str) -> None:
        """Take note of the reload of a model, and why it failed; empty if it did not."""
        for watch in self._watches.values():
            watch.reloaded(model, error)

    def _look_for_ever(self) -> None:
        while not self._stopped.wait(self._timing.models_period_s):
            try:
                self._find()
                for name in sorted(self._missing):
                    self._repairs.load(name)
            except CANNOT_LOOK as error:
                self._missed.add(error)
            except CallError:  # the canaries find what is wrong with the server
                pass
            except Exception as error:  # else no new model would be watched, unnoticed
                self._broken = f"the look at the models broke: {error!r}"
                raise

    def _find(self) -> None:
        """Watch the ensembles that were loaded since the last look, and forget those that were unloaded."""
        index = self._control.index()
        loaded = {entry["name"] for entry in index if entry.get("state") == "READY"}
        there = {entry["name"] for entry in index if entry.get("state") not in _GONE}
        known = {name: watch for name, watch in self._known.items() if name in there}
        for name in sorted(loaded - known.keys()):
            known[name] = self._new_watch(self._control.config(name))
        watches = {name: watch for name, watch in known.items() if watch is not None}
        if "" in self._watches and not watches:
            watches[""] = self._watches[""]
        for name in self._watches.keys() - watches.keys():
            self._watches[name].stop()
        self._known, self._watches, self._missing = known, watches, self._missing - loaded

    def _new_watch(self, config: Mapping[str, Any]) -> PublicWatch | None:
        """Return a watch on the model with this configuration, or None if it is no public ensemble."""
        if not takes_image(config) or (ensemble := read_ensemble(config)) is None:
            return None
        return self._watch(Canary(self._control, config, self._stubs.processor_seconds, self._timing), ensemble.steps)

    def _watch(self, canary: Canary | Readiness, steps: Sequence[str]) -> PublicWatch:
        return PublicWatch(
            canary,
            steps,
            control=self._control,
            stubs=self._stubs,
            repairs=self._repairs,
            event=self._event,
            missed=self._missed,
            timing=self._timing,
            others_serve=self._one_serves,
        )

    def _one_serves(self) -> bool:
        return any(not watch.beyond_help for watch in self._watches.values())
