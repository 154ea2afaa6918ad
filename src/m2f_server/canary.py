"""Send a tiny image through a public ensemble: the only proof that the model works.

Triton reports that it is ready even while every request fails. The image asks for every output but the logits, so each
step behind them has to work. Each ensemble has a canary of its own, so that a model that hangs delays no other canary.
"""

import base64
import http.client
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from m2f.contract import CANARY_ID
from m2f_backend.calls import CallError, CannotCallError
from m2f_server.control import Control
from m2f_server.timing import Timing

_COSTLY = {"cls_logits", "mask_logits"}  # tens of MB, even for a tiny image
_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAYAQMAAAChnW13AAAABlBMVEWAgIDcKCgLE2G6AAAAMUlEQVR42mNgwAnYPzAwMMj/YWBi"
    "UGBiYGJgYGBgYnBghLFwEAwM9v9g3Af/YKZgAgBS2QaeTcCqhgAAAABJRU5ErkJggg=="
)
_INPUTS = {"image": np.array([[_IMAGE]], object)}
_SIZE = [24, 32]  # height and width of the image
_COMPUTING = 0.1  # processors that a computing step uses at least; a hanging step uses none
_REJECTED = {http.client.TOO_MANY_REQUESTS, http.client.SERVICE_UNAVAILABLE}  # a queue is full


ProcessorSeconds = Callable[[Sequence[str]], Mapping[str, float]]


class Kind(Enum):
    """The state of a model."""

    SERVES = "serves"
    BUSY = "busy"  # it works, but has more requests than it can answer
    FAILS = "fails"


@dataclass(frozen=True)
class Verdict:
    """The result of a canary.

    Attributes:
        kind: the state of the model.
        reason: why the model does not serve, in fixed words and names of models: anybody may read it at `/ready`.
        blame: the model that hangs or is not ready, if known.
        detail: what the server answered, for the log.
    """

    kind: Kind
    reason: str = ""
    blame: str | None = None
    detail: str = ""

    @property
    def why(self) -> str:
        """Reason and detail."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class _Work:
    """The work of the models at a moment.

    Attributes:
        at: the moment, as `time.monotonic`.
        answered: number of answered requests by model, since the model was loaded.
        waiting: number of waiting requests by model.
        seconds: processor time that the processes of each step have used.
    """

    at: float
    answered: Mapping[str, int]
    waiting: Mapping[str, int]
    seconds: Mapping[str, float]

    def has_answered(self, step: str, now: "_Work") -> bool:
        """Return whether a step has answered a request since this moment."""
        return now.answered.get(step, 0) != self.answered.get(step, 0)

    def has_computed(self, step: str, now: "_Work") -> bool:
        """Return whether a step has computed since this moment: on a large request, or in an endless loop."""
        return now.seconds[step] - self.seconds[step] >= _COMPUTING * (now.at - self.at)


class _Question(ABC):
    """A question to the server, with a verdict as its answer."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.seconds = 0.0

    def ask(self) -> Verdict:
        """Ask, and return the verdict.

        Raises:
            CannotCallError: this machine lacks something for the call.
        """
        started = time.monotonic()
        try:
            return self._ask()
        except CannotCallError:
            raise
        except CallError as error:
            return Verdict(Kind.FAILS, "the server does not answer", detail=str(error))
        finally:
            self.seconds = time.monotonic() - started

    @abstractmethod
    def _ask(self) -> Verdict: ...


class Canary(_Question):
    """Sends the image to one public ensemble.

    Args:
        control: calls to the server.
        config: configuration of the ensemble.
        processor_seconds: returns the processor time that the processes of each of some models have used.
        timing: how long to wait.

    Attributes:
        name: name of the ensemble.
        seconds: duration of the last canary.
    """

    def __init__(
        self,
        control: Control,
        config: Mapping[str, Any],
        processor_seconds: ProcessorSeconds = lambda models: dict.fromkeys(models, 0.0),
        timing: Timing | None = None,
    ) -> None:
        super().__init__(control)
        self.name: str = config["name"]
        self._processor_seconds = processor_seconds
        self._timing = timing or Timing()
        self._outputs = tuple(entry["name"] for entry in config["output"] if entry["name"] not in _COSTLY)
        self._steps = _steps_behind(self._outputs, config["ensemble_scheduling"]["step"])
        self._fastest = math.inf
        self._busy_since: _Work | None = None

    def ask(self) -> Verdict:
        """Send the image, and return the verdict.

        Raises:
            CannotCallError, OSError: this machine lacks something for the call, or cannot read its process table now.
        """
        verdict = super().ask()
        if verdict.kind is Kind.SERVES:
            self._fastest = min(self._fastest, self.seconds)
        return verdict

    def _ask(self) -> Verdict:
        before = self._look()
        timeout = self._timeout()
        try:
            found = self._control.infer(self.name, _INPUTS, self._outputs, request_id=CANARY_ID, timeout=timeout)
        except CannotCallError:
            raise
        except CallError as error:
            return self._explain(error, before, timeout)
        self._busy_since = None
        if "size" in found and (size := found["size"].ravel().tolist()) != _SIZE:
            return Verdict(Kind.FAILS, f"{self.name} answered wrong: size {size}, not {_SIZE}")
        return Verdict(Kind.SERVES)

    def _timeout(self) -> float:
        timing = self._timing
        if self._fastest == math.inf:
            return timing.first_timeout_s
        return max(timing.timeout_s, timing.patience * self._fastest)

    def _explain(self, error: CallError, before: _Work, timeout: float) -> Verdict:
        """Return the verdict for a failed request: a busy model or a broken one, and the step to blame."""
        if error.status is None:  # no answer in time
            now = self._look()
            stuck = _stuck(self._steps, before, now)
            if stuck is None:
                return self._busy(f"{self.name}: no answer within {timeout:g} s, but every step goes on")
            if before.has_computed(stuck, now):
                return self._busy(f"{self.name}: no answer within {timeout:g} s: {stuck} works on a large request")
            return Verdict(Kind.FAILS, f"{self.name} does not answer within {timeout:g} s: {stuck} hangs", stuck)
        if error.status in _REJECTED:
            return self._busy(f"{self.name} refuses the canary", str(error))
        if error.status == http.client.BAD_REQUEST:  # a user's own ensemble refuses this image, so it works
            return Verdict(Kind.SERVES)
        return Verdict(Kind.FAILS, f"{self.name} answers the canary with an error", self._unready(), str(error))

    def _busy(self, reason: str, detail: str = "") -> Verdict:
        """Return BUSY, or FAILS if a step hangs: requests have waited for it, and it has answered none."""
        now = self._look()
        then = self._busy_since = self._busy_since or now
        seconds = now.at - then.at
        if seconds < self._timeout():
            return Verdict(Kind.BUSY, reason, detail=detail)
        waited_for = [step for step in self._steps if then.waiting.get(step) and now.waiting.get(step)]
        silent = [step for step in waited_for if not then.has_answered(step, now)]
        endless = seconds >= self._timing.longest_work_s
        hung = [step for step in silent if endless or not then.has_computed(step, now)]
        if hung or not silent:
            self._busy_since = now
        if hung:  # the last step, because preprocessing waits for the later ones
            why = f"{hung[-1]} hangs: no answer in {seconds:.0f} s, though requests wait for it"
            return Verdict(Kind.FAILS, why, hung[-1])
        return Verdict(Kind.BUSY, reason, detail=detail)

    def _look(self) -> _Work:
        seconds = self._processor_seconds(self._steps)
        return _Work(time.monotonic(), self._control.answered(), self._control.pending(), seconds)

    def _unready(self) -> str | None:
        return _unready(self._control, (*self._steps, self.name))


class Readiness(_Question):
    """Asks the loaded models for their own readiness, on a server where no ensemble takes an image.

    Args:
        control: calls to the server.

    Attributes:
        name: empty, because this is no model.
        seconds: duration of the last question.
    """

    name = ""

    def _ask(self) -> Verdict:
        unready = _unready(self._control, sorted({name for name, _ in self._control.loaded()}))
        return Verdict(Kind.FAILS, f"model {unready} is not ready", unready) if unready else Verdict(Kind.SERVES)


def takes_image(config: Mapping[str, Any]) -> bool:
    """Return whether the model with this configuration is an ensemble to which the image can be sent."""
    takes = {entry["name"]: entry["data_type"] for entry in config.get("input", [])}
    return "ensemble_scheduling" in config and takes == {"image": "TYPE_STRING"}


def ask_once(control: Control, models: Iterable[str], timing: Timing) -> Verdict:
    """Send each public ensemble among the models one canary until one serves, and return the last verdict."""
    verdict = Verdict(Kind.FAILS, "no model is loaded")
    configs = [control.config(model) for model in models]
    public = [config for config in configs if takes_image(config)]
    canaries: list[Canary | Readiness] = [Canary(control, config, timing=timing) for config in public]
    for canary in canaries or [Readiness(control)]:
        verdict = canary.ask()
        if verdict.kind is Kind.SERVES:
            break
    return verdict


def _unready(control: Control, models: Iterable[str]) -> str | None:
    return next((model for model in models if not control.is_ready(model)), None)


def _stuck(steps: Sequence[str], before: _Work, now: _Work) -> str | None:
    """Return the step at which a request is stuck, or None if that step has answered others.

    Where requests wait, that is the last step with a queue, because preprocessing waits for the later steps.
    """
    silent = [step for step in steps if not before.has_answered(step, now)]
    queued = [step for step in steps if now.waiting.get(step)]
    candidates = queued[-1:] or silent[:1]
    return next((step for step in candidates if step in silent), None)


def _steps_behind(outputs: Iterable[str], steps: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the models that make these outputs, directly or through other steps."""
    tensors, needed = set(outputs), set()
    for _ in steps:  # the longest possible chain
        for step in steps:
            if tensors & set(step["output_map"].values()):
                needed.add(step["model_name"])
                tensors |= set(step["input_map"].values())
    return tuple(step["model_name"] for step in steps if step["model_name"] in needed)
