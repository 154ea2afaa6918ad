"""A real inference through the public ensembles: the only sign that a server serves.

Triton calls itself ready while every request fails. So a tiny image goes the way of all images, and asks for every
output but the logits: each step behind them has to work.
"""

import base64
import http.client
import json
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import quote

from m2f.contract import CANARY_ID
from m2f_backend.calls import CallError
from m2f_server.control import Control

INPUT = "image"  # ensembles that take it are public
_COSTLY = {"cls_logits", "mask_logits"}  # their step copies tens of MB, for a tiny image as for any
_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAYAQMAAAChnW13AAAABlBMVEWAgIDcKCgLE2G6AAAAMUlEQVR42mNgwAnYPzAwMMj/YWBi"
    "UGBiYGJgYGBgYnBghLFwEAwM9v9g3Af/YKZgAgBS2QaeTcCqhgAAAABJRU5ErkJggg=="
)
_HEIGHT, _WIDTH = 24, 32
_FIRST_TIMEOUT_S = 60.0  # an engine's first inference may take many times what the others do
_TIMEOUT_S = 10.0  # at least; ten times what the fastest one took where that is more
_PATIENCE = 10
_LONGEST_WORK_S = 180.0  # more than the largest request that is allowed takes on a slow processor
_SHARE = 0.1  # of a processor: a step that takes so much computes, one that waits for ever takes none
_REJECTED = {http.client.TOO_MANY_REQUESTS, http.client.SERVICE_UNAVAILABLE}  # by a queue's limits


class Kind(Enum):
    """How a server stands."""

    SERVES = "serves"
    BUSY = "busy"  # it works, but has more to do than it can
    FAILS = "fails"


@dataclass(frozen=True)
class Verdict:
    """What a canary found.

    Attributes:
        kind: how the server stands.
        reason: why it does not serve.
        blame: the model that hangs or says that it is not ready, where one is known.
    """

    kind: Kind
    reason: str = ""
    blame: str | None = None


@dataclass(frozen=True)
class _Target:
    """An ensemble to ask.

    Attributes:
        name: of the ensemble.
        outputs: what to ask for.
        steps: the models that have to work for it, in order.
    """

    name: str
    outputs: tuple[str, ...]
    steps: tuple[str, ...]


@dataclass(frozen=True)
class _Work:
    """What the models had done and to do at a time.

    Attributes:
        at: the time.
        answered: requests by model, since it was loaded.
        waiting: likewise, those in its queue.
        seconds: processor time that the processes of each step have used.
    """

    at: float
    answered: Mapping[str, int]
    waiting: Mapping[str, int]
    seconds: Mapping[str, float]

    def goes_on(self, step: str, now: "_Work") -> bool:
        """Tell whether a step has answered anybody since."""
        return now.answered.get(step, 0) != self.answered.get(step, 0)

    def computes(self, step: str, now: "_Work") -> bool:
        """Tell whether a step that has answered nobody since was at work: on a large request, or in an endless loop."""
        return now.seconds[step] - self.seconds[step] >= _SHARE * (now.at - self.at)


class Canary:
    """Asks one server; where it has no ensemble that takes an image, its models' own readiness has to do.

    Args:
        control: the server.
        models: all models that it has loaded.
        processor_seconds: returns what a model's processes have used so far.
    """

    def __init__(
        self, control: Control, models: Iterable[str], processor_seconds: Callable[[str], float] = lambda _: 0.0
    ) -> None:
        self._control = control
        self._processor_seconds = processor_seconds
        self._models = tuple(models)
        self._targets = [target for model in self._models if (target := _target(control.config(model)))]
        self._fastest = float("inf")
        self._busy_since: dict[str, _Work] = {}
        self.seconds = 0.0  # that the last one took

    def ask(self) -> Verdict:
        """Ask every public ensemble, and return the first verdict that is not good."""
        started = time.monotonic()
        try:
            for target in self._targets:
                verdict = self._ask(target)
                if verdict.kind is not Kind.SERVES:
                    return verdict
            if not self._targets and (unready := self._unready()):
                return Verdict(Kind.FAILS, f"model {unready} is not ready", unready)
        except CallError as error:
            return Verdict(Kind.FAILS, str(error))
        finally:
            self.seconds = time.monotonic() - started
        self._fastest = min(self._fastest, self.seconds)
        return Verdict(Kind.SERVES)

    def _ask(self, target: _Target) -> Verdict:
        before = self._look(target)
        timeout = self._timeout()
        try:
            size = _infer(self._control, target, timeout=timeout)
        except CallError as error:
            return self._explain(target, error, before, timeout)
        self._busy_since.pop(target.name, None)
        if size not in (None, [_HEIGHT, _WIDTH]):
            return Verdict(Kind.FAILS, f"{target.name} answered wrong: size {size}, not {[_HEIGHT, _WIDTH]}")
        return Verdict(Kind.SERVES)

    def _timeout(self) -> float:
        return _FIRST_TIMEOUT_S if self._fastest == float("inf") else max(_TIMEOUT_S, _PATIENCE * self._fastest)

    def _explain(self, target: _Target, error: CallError, before: _Work, timeout: float) -> Verdict:
        """Tell a busy server from a broken one, and find the model to blame."""
        if error.status is None:  # no answer in time
            now = self._look(target)
            stuck = _stuck(target.steps, before, now)
            if stuck is None:
                return self._busy(target, f"no answer within {timeout:g} s, but every step goes on")
            if before.computes(stuck, now):
                return self._busy(target, f"no answer within {timeout:g} s: {stuck} works on a large request")
            return Verdict(Kind.FAILS, f"{target.name} does not answer within {timeout:g} s: {stuck} hangs", stuck)
        if error.status in _REJECTED:
            return self._busy(target, str(error))
        if error.status == http.client.BAD_REQUEST:  # somebody's own ensemble that does not like our image: it answers
            return Verdict(Kind.SERVES)
        return Verdict(Kind.FAILS, str(error), self._unready())

    def _busy(self, target: _Target, reason: str) -> Verdict:
        """Tell a busy server from one with a step that hangs under load: requests wait for it, and it answers none."""
        now = self._look(target)
        then = self._busy_since.setdefault(target.name, now)
        seconds = now.at - then.at
        if seconds < self._timeout():
            return Verdict(Kind.BUSY, reason)
        waited_for = [step for step in target.steps if then.waiting.get(step) and now.waiting.get(step)]
        silent = [step for step in waited_for if not then.goes_on(step, now)]
        hung = [step for step in silent if seconds >= _LONGEST_WORK_S or not then.computes(step, now)]
        if hung or not silent:
            self._busy_since[target.name] = now
        if hung:  # the last one: preprocessing waits for those behind it
            why = f"{hung[-1]} hangs: no answer in {seconds:.0f} s, though requests wait for it"
            return Verdict(Kind.FAILS, why, hung[-1])
        return Verdict(Kind.BUSY, reason)

    def _look(self, target: _Target) -> _Work:
        seconds = {step: self._processor_seconds(step) for step in target.steps}
        return _Work(time.monotonic(), self._control.answered(), self._control.pending(), seconds)

    def _unready(self) -> str | None:
        return next((model for model in self._models if not self._control.is_ready(model)), None)


def _stuck(steps: Sequence[str], before: _Work, now: _Work) -> str | None:
    """Return the step that an answer did not get past, where that step has answered nobody.

    Where requests wait, it is the last step that they wait for: preprocessing waits for those behind it.
    """
    silent = [step for step in steps if not before.goes_on(step, now)]
    queued = [step for step in steps if now.waiting.get(step)]
    candidates = queued[-1:] or silent[:1]
    return next((step for step in candidates if step in silent), None)


def _target(config: Mapping[str, Any]) -> _Target | None:
    """Return how to ask a model with this configuration; None where it is no ensemble that takes an image."""
    takes = {entry["name"]: entry["data_type"] for entry in config.get("input", [])}
    if "ensemble_scheduling" not in config or takes != {INPUT: "TYPE_STRING"}:
        return None
    outputs = tuple(entry["name"] for entry in config["output"] if entry["name"] not in _COSTLY)
    return _Target(config["name"], outputs, _steps_behind(outputs, config["ensemble_scheduling"]["step"]))


def _steps_behind(outputs: Iterable[str], steps: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the models that make these outputs, directly or not."""
    tensors, needed = set(outputs), set()
    for _ in steps:  # as often as the longest chain may be
        for step in steps:
            if tensors & set(step["output_map"].values()):
                needed.add(step["model_name"])
                tensors |= set(step["input_map"].values())
    return tuple(step["model_name"] for step in steps if step["model_name"] in needed)


def _infer(control: Control, target: _Target, *, timeout: float) -> list[int] | None:
    """Send the image, and return the `size` that the server found, where the ensemble has that output.

    The image travels in the protocol's binary form; answers do, too, but for `size`, which can then be read as JSON.
    """
    image = struct.pack("<I", len(_IMAGE)) + _IMAGE
    head = json.dumps(
        {
            "id": CANARY_ID,
            "inputs": [
                {"name": INPUT, "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(image)}}
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": name != "size"}} for name in target.outputs],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    path = f"/v2/models/{quote(target.name)}/infer"
    content = control.call("POST", path, head + image, headers=headers, timeout=timeout)
    try:
        answer, _ = json.JSONDecoder().raw_decode(content.decode(errors="replace"))
        sizes = [output["data"] for output in answer["outputs"] if output["name"] == "size"]
    except (ValueError, LookupError, TypeError) as error:
        raise CallError(f"{target.name} answered what cannot be read: {error}", status=http.client.OK) from error
    return sizes[0] if sizes else None
