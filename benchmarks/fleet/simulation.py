"""A fleet of replicas as discrete events: requests arrive, wait, are computed in batches, and replicas come and go."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LARGEST_BATCH = 8
ROOM = 82  # requests that wait in a replica: 64 for preprocessing, 2 in it, 16 for the engine (docs/limits.md)

ANSWERED, FULL, LEAVING = "answered", "full", "leaving"


class Clock:
    """Time that jumps from event to event."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Call a function when some seconds have passed."""
        heapq.heappush(self._events, (self.now + seconds, next(self._number), event))

    def run(self, until: float) -> None:
        """Let events happen until a time."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until


@dataclass(eq=False)
class Replica:
    """A server: a queue, and one engine whose time grows with the images of a batch.

    Attributes:
        clock: the time.
        image_s: seconds of the engine for an image.
        leaving: whether new requests are refused, as Triton does while it drains.
        in_flight: requests that wait or are computed.
        busy_s: seconds that the engine has worked, up to the end of the batch under way.
        waited_s: seconds that the requests computed so far have waited.
        done: number of requests that were computed.
        full: number of requests that were turned away.
    """

    clock: Clock
    image_s: float
    leaving: bool = False
    in_flight: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0
    done: int = 0
    full: int = 0
    _waiting: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)
    _computes: bool = False

    def take(self, answered: Callable[[], None]) -> str:
        """Take a request and call `answered` at its end, or return why not: `FULL` or `LEAVING`."""
        if self.leaving:
            return LEAVING
        if len(self._waiting) >= ROOM:
            self.full += 1
            return FULL
        self.in_flight += 1
        self._waiting.append((self.clock.now, answered))
        if not self._computes:
            self._compute()
        return ANSWERED

    def _compute(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(LARGEST_BATCH, len(self._waiting)))]
        self._computes = bool(batch)
        if not batch:
            return
        took = self.image_s * len(batch)
        self.busy_s += took
        self.waited_s += sum(self.clock.now - came for came, _ in batch)

        def end() -> None:
            self.in_flight -= len(batch)
            self.done += len(batch)
            for _, answered in batch:
                answered()
            self._compute()

        self.clock.after(took, end)


def in_turn() -> Callable[[Sequence[Replica]], Replica]:
    """Return a choice that takes one replica after the other, as gRPC's round robin does."""
    numbers = itertools.count()
    return lambda replicas: replicas[next(numbers) % len(replicas)]


def least_request(draws: random.Random, *, choices: int = 3) -> Callable[[Sequence[Replica]], Replica]:
    """Return Envoy's choice: of some replicas drawn at random (`choice_count`), the one with fewest in flight."""
    return lambda replicas: min(
        (replicas[int(draws.random() * len(replicas))] for _ in range(choices)), key=lambda replica: replica.in_flight
    )


@dataclass(kw_only=True, eq=False)
class Front:
    """What clients see: the replicas that are known, and a choice among them.

    Attributes:
        clock: the time.
        choose: picks a replica for a request.
        tries: number of replicas that a request is sent to, one after the other, as long as they are leaving.
        known: replicas that get requests.
        ends: what became of the requests.
        retried: number of times that a request was sent again.
        times: seconds of each answered request, with the time of its end.
    """

    clock: Clock
    choose: Callable[[Sequence[Replica]], Replica]
    tries: int = 1
    known: list[Replica] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=lambda: dict.fromkeys((ANSWERED, FULL, LEAVING), 0))
    retried: int = 0
    times: list[tuple[float, float]] = field(default_factory=list)

    def send(self, after: Callable[[str], None] = lambda _: None) -> None:
        """Send a request, and call `after` with what became of it: `ANSWERED`, `FULL` or `LEAVING`."""
        came = self.clock.now

        def answered() -> None:
            self.times.append((self.clock.now, self.clock.now - came))
            self.ends[ANSWERED] += 1
            after(ANSWERED)

        asked: list[Replica] = []
        while True:
            replica = self.choose([known for known in self.known if known not in asked] if asked else self.known)
            end = replica.take(answered)
            asked.append(replica)
            if end != LEAVING or len(asked) == min(self.tries, len(self.known)):
                break
        self.retried += len(asked) - 1
        if end != ANSWERED:
            self.ends[end] += 1
            after(end)


def keep_in_flight(front: Front, count: int, *, pause_s: float = 0.1) -> None:
    """Send requests for ever, each when the one before it has ended; after a failure there is a pause."""

    def again(end: str) -> None:
        if end == ANSWERED:
            front.send(again)
        else:
            front.clock.after(pause_s, lambda: front.send(again))

    for _ in range(count):
        front.send(again)


def arrive(front: Front, draws: random.Random, rate: Callable[[float], float], until: float) -> None:
    """Send requests at random times, at a rate that may change, until a time."""

    def one() -> None:
        front.send()
        plan()

    def plan() -> None:
        wait = draws.expovariate(rate(front.clock.now))
        if front.clock.now + wait < until:
            front.clock.after(wait, one)

    plan()
