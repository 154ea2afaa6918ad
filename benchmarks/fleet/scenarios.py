"""What happens to a fleet: a rolling update, a burst under an autoscaler, and what was measured with few replicas."""

from __future__ import annotations

import random
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..autoscaling.scaler import Autoscaler
from .simulation import ANSWERED, FULL, LEAVING, Clock, Front, Replica, arrive, in_turn, keep_in_flight, least_request

SEED = 7
IMAGE_S = 0.05  # a replica carries 20 images a second
LEARN_S = 2.0  # until a new replica gets requests
ENDS_S = 0.5  # from the last answer to the end of the process
PROBE_S = 1.0  # between two looks whether a replica is ready, or has answered all
WINDOW_S = 60.0  # of the recording rules
_LONGEST_S = 1e6


def carried(image_s: Sequence[float], *, balancing: str, in_flight: int = 16, seconds: float = 300) -> float:
    """Return the images a second of replicas with some requests in flight.

    Args:
        image_s: seconds of an image on each replica.
        balancing: `in turn` or `least request`.
        in_flight: number of requests in flight.
        seconds: length of the measurement.
    """
    clock = Clock()
    choose = in_turn() if balancing == "in turn" else least_request(_draws())
    front = Front(clock=clock, choose=choose, known=[Replica(clock, each_s) for each_s in image_s])
    keep_in_flight(front, in_flight)
    clock.run(seconds)
    return front.ends[ANSWERED] / seconds


def levels(
    image_s: float, shares: Sequence[float], step_s: float, *, replicas: int, seed: int
) -> list[dict[str, float]]:
    """Return for each level of a load what replicas that are asked in turn would say of themselves.

    Args:
        image_s: seconds of an image.
        shares: load of each level, as a share of what the replicas carry.
        step_s: length of a level.
        replicas: number of replicas.
        seed: for the random times at which requests arrive.
    """
    clock = Clock()
    front = Front(clock=clock, choose=in_turn(), known=[Replica(clock, image_s) for _ in range(replicas)])
    full = replicas / image_s
    last = len(shares) - 1
    draws = random.Random(seed)  # noqa: S311 (times of requests)
    arrive(front, draws, lambda now: full * shares[min(int(now / step_s), last)], until=step_s * len(shares))
    found = []
    for end in (step_s * number for number in range(1, len(shares) + 1)):
        clock.run(end - WINDOW_S)
        before = _sums(front)
        clock.run(end)
        busy, waited, done = (now - then for now, then in zip(_sums(front), before, strict=True))
        found.append({"busy": busy / WINDOW_S / replicas, "queue_s": waited / max(1, done)})
    return found


def _sums(front: Front) -> tuple[float, float, float]:
    """Return over all replicas: seconds at work, seconds that requests waited, requests that were computed."""
    known = front.known
    return sum(r.busy_s for r in known), sum(r.waited_s for r in known), sum(r.done for r in known)


@dataclass(frozen=True, kw_only=True)
class Update:
    """How replicas are replaced.

    Attributes:
        replicas: number of replicas.
        share: of what the replicas carry, the load.
        at_once: replicas that are replaced at a time.
        start_s: from the start of a replica until it is ready.
        drain_delay_s: from the stop signal until new requests are refused.
        notice_s: from the stop signal until no requests are sent to the replica.
        tries: number of replicas that a request is sent to, as long as they are leaving.
    """

    replicas: int
    share: float = 0.7
    at_once: int = 1
    start_s: float = 30.0
    drain_delay_s: float = 0.0
    notice_s: float = 5.0
    tries: int = 1


def rolling_update(how: Update) -> dict[str, float]:
    """Replace all replicas while requests arrive, and return what became of the requests."""
    clock = Clock()
    front = Front(clock=clock, choose=least_request(_draws()), tries=how.tries)
    front.known = [Replica(clock, IMAGE_S) for _ in range(how.replicas)]
    rollout = _Rollout(how, front)
    rate = how.share * how.replicas / IMAGE_S
    arrive(front, _draws(), lambda _: rate, until=_LONGEST_S)
    while rollout.ended < how.replicas:
        clock.run(clock.now + PROBE_S)
    times = [took for _, took in front.times]
    return {
        "minutes": clock.now / 60,
        "requests": sum(front.ends.values()),
        "failed": front.ends[LEAVING] + front.ends[FULL],
        "sent_again": front.retried,
        "p99_ms": 1e3 * statistics.quantiles(times, n=100)[98],
    }


class _Rollout:
    """Starts a new replica, stops an old one when the new one gets requests, and goes on with the next.

    Args:
        how: numbers and times.
        front: its known replicas are replaced.

    Attributes:
        ended: number of old replicas that have ended.
    """

    def __init__(self, how: Update, front: Front) -> None:
        self.ended = 0
        self._how, self._front, self._clock = how, front, front.clock
        self._old = deque(front.known)
        for _ in range(how.at_once):
            self._replace()

    def _replace(self) -> None:
        if self._old:
            leaving = self._old.popleft()
            self._clock.after(self._how.start_s + LEARN_S, lambda: self._swap(leaving))

    def _swap(self, leaving: Replica) -> None:
        self._front.known.append(Replica(self._clock, IMAGE_S))
        self._clock.after(self._how.notice_s, lambda: self._forget(leaving))
        self._clock.after(self._how.drain_delay_s, lambda: self._drain(leaving))

    def _forget(self, leaving: Replica) -> None:
        if leaving in self._front.known:
            self._front.known.remove(leaving)

    def _drain(self, leaving: Replica) -> None:
        leaving.leaving = True
        if leaving.in_flight:
            self._clock.after(PROBE_S, lambda: self._drain(leaving))
        else:
            self._clock.after(ENDS_S, lambda: self._end(leaving))

    def _end(self, leaving: Replica) -> None:
        self._forget(leaving)  # its connections are broken
        self.ended += 1
        self._replace()


@dataclass(frozen=True, kw_only=True)
class Burst:
    """A load that grows at once, and an autoscaler.

    Attributes:
        replicas: number of replicas before.
        before: load before, as a share of what they carry.
        after: load after, as a share of what they carry.
        start_s: from the autoscaler's decision until a replica gets requests.
        targets: target of each metric (`scaler.TARGETS`).
        seconds: length of the burst.
    """

    replicas: int
    before: float = 0.6
    after: float = 1.5
    start_s: float = 30.0
    targets: Mapping[str, float]
    seconds: float = 300.0


def burst(how: Burst) -> dict[str, float]:
    """Let the load grow, and return what became of the requests and how long it took to answer them in time."""
    clock = Clock()
    front = Front(clock=clock, choose=least_request(_draws()))
    front.known = [Replica(clock, IMAGE_S) for _ in range(how.replicas)]
    scaler = Autoscaler(targets=how.targets, least=how.replicas, most=4 * how.replicas)
    watch = Watch(front, scaler, lambda event: clock.after(how.start_s, event))
    begins = 2 * WINDOW_S
    full = how.replicas / IMAGE_S
    arrive(front, _draws(), lambda now: full * (how.before if now < begins else how.after), until=begins + how.seconds)
    while clock.now < begins + how.seconds:
        clock.run(clock.now + scaler.period_s)
        watch.look()
    late = [at for at, took in front.times if took > 1.0]
    ends = sum(front.ends.values())
    return {
        "requests": ends,
        "turned_away": front.ends[FULL],
        "turned_away_share": front.ends[FULL] / ends,
        "late_until_s": max(late, default=begins) - begins,
        "replicas_after": len(front.known),
    }


class Watch:
    """What Prometheus and the autoscaler see of the replicas, and the replicas that they start.

    Args:
        front: the replicas that get requests.
        scaler: decides.
        start: calls a function when a new replica would get requests.
    """

    def __init__(self, front: Front, scaler: Autoscaler, start: Callable[[Callable[[], None]], None]) -> None:
        self._front, self._scaler, self._start = front, scaler, start
        self._count = len(front.known)
        self._seen: dict[Replica, deque[tuple[float, float, float, int]]] = {}

    def look(self) -> None:
        """Read the metrics of the last minute, and start the replicas that the autoscaler asks for.

        Replicas that have not started yet count with 0, as the autoscaler counts them.
        """
        now = self._front.clock.now
        sums = dict.fromkeys(("busy", "queue_s"), 0.0)
        for replica in self._front.known:
            seen = self._seen.setdefault(replica, deque())
            seen.append((now, replica.busy_s, replica.waited_s, replica.done))
            while seen[0][0] < now - WINDOW_S:
                seen.popleft()
            (then, busy, waited, done), last = seen[0], seen[-1]
            if now > then:
                sums["busy"] += min(1.0, (last[1] - busy) / (now - then))
                sums["queue_s"] += (last[2] - waited) / max(1, last[3] - done)
        averages = {name: value / self._count for name, value in sums.items()}
        wanted = self._scaler.ask(now, averages, replicas=self._count)
        for _ in range(wanted - self._count):  # the load does not fall here, so none is stopped
            self._start(lambda: self._front.known.append(Replica(self._front.clock, IMAGE_S)))
        self._count = max(self._count, wanted)


def _draws() -> random.Random:
    return random.Random(SEED)  # noqa: S311 (times and choices of a simulation)
