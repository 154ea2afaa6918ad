"""Medians of interleaved repeats."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

_TURN_S = 0.1  # a way that is faster runs again until its turn is over
_EVICTING_BYTES = 1 << 26  # more than the caches of a core and its share of the last level


@dataclass
class Times:
    """How long one way took.

    Attributes:
        cold: seconds of the first run of each turn, when the caches hold other data.
        all: seconds of every run.
    """

    cold: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Of every run."""
        return statistics.median(self.all) * 1e3

    @property
    def cold_ms(self) -> float:
        """Of the first runs."""
        return statistics.median(self.cold) * 1e3


def interleaved(ways: Mapping[str, Callable[[], object]], *, rounds: int, turn_s: float = _TURN_S) -> dict[str, Times]:
    """Give every way its turn in each round, so that a busy moment of the machine hits all alike."""
    times = {name: Times() for name in ways}
    evicting = np.zeros(_EVICTING_BYTES, np.uint8)
    for _ in range(rounds):
        for name, way in ways.items():
            evicting += 1
            turn = [_seconds(way)]
            while sum(turn) < turn_s:
                turn.append(_seconds(way))
            times[name].cold.append(turn[0])
            times[name].all.extend(turn)
    return times


def _seconds(way: Callable[[], object]) -> float:
    begin = time.perf_counter()
    way()
    return time.perf_counter() - begin
