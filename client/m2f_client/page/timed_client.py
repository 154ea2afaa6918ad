"""What the page wants from a server: instances, class names, and how long each step of the ensemble took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2f.contract import PUBLIC_MODEL
from m2f.errors import M2FError
from m2f.settings import Settings
from m2f_client.client import Client
from m2f_client.client_errors import ModelNotFound
from m2f_client.request import NAMES_MODEL, class_names_of
from m2f_client.result import Result
from m2f_client.transports.protocol import Connection, Deadline

_COUNTED_S = 1.0  # seconds to wait for a request to be counted
_COMPUTE = ("compute_input", "compute_infer", "compute_output")  # of Triton's `inference_stats`

Spent = dict[str, tuple[int, int, int]]
"""Model -> requests, nanoseconds of work, nanoseconds of waiting, since the server started."""


@dataclass(frozen=True)
class StepTime:
    """One step of the ensemble.

    Attributes:
        name: of its model.
        work_ms, wait_ms: milliseconds that a request took and waited there, the mean of those in between.
    """

    name: str
    work_ms: float
    wait_ms: float


@dataclass(frozen=True)
class TimedAnswer:
    """What the server found, and the time it took.

    Attributes:
        result: the structured outputs.
        total_ms: from the file to the arrays, as the client sees it.
        steps: in the ensemble's order; empty where the server does not tell its statistics.
    """

    result: Result
    total_ms: float
    steps: tuple[StepTime, ...]


class TimedClient:
    """The server behind the page. Safe to share between threads.

    Args:
        transport: the connection; closed with the server.
        timeout: seconds for a whole request.

    Attributes:
        url: its address.
        class_names: the model's names, None where it states none.
        score_threshold: of a request that has none.

    Raises:
        ServerUnavailable, ModelNotFound, Timeout, ServerError: see `m2f_client.client_errors`.
    """

    def __init__(self, transport: Connection, *, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._client = Client(transport=transport, timeout=timeout)
        self.url = transport.url
        ensemble = transport.model_config(PUBLIC_MODEL, timeout).get("ensemble_scheduling", {})
        self._steps = tuple(step["model_name"] for step in ensemble.get("step", ()))
        try:
            config = transport.model_config(NAMES_MODEL, timeout)
        except ModelNotFound:
            config = {}  # somebody else's repository
        self.class_names = class_names_of(config)
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self.score_threshold = Settings.from_repository(parameters).score_threshold

    def ask(self, image: Path, *, score_threshold: float, classes: Sequence[int]) -> TimedAnswer:
        """Find the instances of an image file.

        Args:
            image: JPEG, PNG or WebP.
            score_threshold: least score, 0 to 1.
            classes: only these, by index; none for all.

        Raises:
            M2FError: as `Client.predict`.
        """
        before = self._spent()
        start = time.perf_counter()
        result = self._client.predict(
            image, score_threshold=score_threshold, classes=",".join(map(str, classes)) or None
        )
        total = time.perf_counter() - start
        return TimedAnswer(result, total * 1e3, steps_between(before, self._counted(before), self._steps))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _counted(self, before: Spent) -> Spent:
        """Return what was spent once the request is counted: Triton answers first, and counts steps, then ensemble."""
        deadline = Deadline(_COUNTED_S)
        after = self._spent()
        while before and requests_of(after) <= requests_of(before) and deadline.left():
            time.sleep(0.002)
            after = self._spent()
        return after

    def _spent(self) -> Spent:
        try:
            return spent(self._transport.statistics(self._timeout))
        except M2FError:
            return {}  # a front may keep them to itself; the picture matters more


def requests_of(spent: Spent) -> int:
    """Return how many requests the ensemble has answered."""
    return spent.get(PUBLIC_MODEL, (0, 0, 0))[0]


def spent(statistics: Sequence[Mapping[str, Any]]) -> Spent:
    """Return what each model has spent, all its versions together.

    Args:
        statistics: `model_stats` as HTTP has it, or gRPC's: numbers are text there, and zeros left out.
    """
    sums: Spent = {}
    for entry in statistics:
        kinds = entry.get("inference_stats", {})
        requests, work, wait = sums.get(entry["name"], (0, 0, 0))
        sums[entry["name"]] = (
            requests + _number(kinds, "success", "count"),
            work + sum(_number(kinds, kind, "ns") for kind in _COMPUTE),
            wait + _number(kinds, "queue", "ns"),
        )
    return sums


def _number(kinds: Mapping[str, Any], kind: str, member: str) -> int:
    return int(kinds.get(kind, {}).get(member, 0))


def steps_between(before: Spent, after: Spent, names: Sequence[str]) -> tuple[StepTime, ...]:
    """Return the mean milliseconds of each step over the requests between two statistics; steps that had none fall out.

    Usually that is one request. Where others ask the same server in that moment, theirs are in the mean.
    """
    steps = []
    for name in names:
        requests, work, wait = (
            b - a for a, b in zip(before.get(name, (0, 0, 0)), after.get(name, (0, 0, 0)), strict=True)
        )
        if requests > 0:
            steps.append(StepTime(name, work / requests / 1e6, wait / requests / 1e6))
    return tuple(steps)
