"""Backpressure: preprocessing waits while the queues behind it are long.

Triton can refuse at a queue, but one that may refuse forms no batch ahead of time, and loses wake-ups: a request then
waits there until the next one arrives, or half a second (core up to mid-2026; docs/limits.md has the figures). So the
queues of the engine and of the steps behind it refuse nothing, and are kept short from here. What they have no room
for waits in the queue of preprocessing, and is refused there, undecoded.
"""

import os
import time
from collections.abc import Callable, Mapping

from m2f.contract import PUBLIC_MODEL
from m2f.limits import MAX_BATCH_SIZE
from m2f_backend.calls import CallError, queues

METRICS = "M2F_METRICS"  # environment: `host:port` of the server's metrics
LONGEST = 2 * MAX_BATCH_SIZE  # a queue that holds the next batch while one more is on its way

_METRICS_OF_TRITON = "127.0.0.1:8002"
_METRICS_TIMEOUT_S = 1.0
_PERIOD_S = 0.05  # the metrics take a millisecond
_LONGEST_WAIT_S = 30.0  # for a queue that does not move; somebody else will find out why
_FAILS_S = 3.0  # a dead process fails its requests second by second
_SILENCE_S = 10.0  # after a warning


class Backpressure:
    """What one instance of preprocessing may send on.

    The queue of a process that died does not count while its requests fail: they hold on to the model that it was, and
    others are served by the one that was loaded in its place.

    Args:
        model: its name.
        warn: called with the reason when the queues cannot be seen, which are then taken for empty.
    """

    def __init__(self, model: str, warn: Callable[[str], None]) -> None:
        self._model = model
        self._warn = warn
        self._metrics_url = os.environ.get(METRICS, _METRICS_OF_TRITON)
        self._room = 0
        self._lost: Mapping[str, int] = {}
        self._lost_at: dict[str, float] = {}
        self._silent_until = 0.0

    def wait(self) -> None:
        """Return when the longest queue behind has room for a request.

        They are looked at only when as many requests have gone as there was room for at the last look. What others
        send meanwhile, a second instance or clients with tensors, may exceed `LONGEST` by as much.
        """
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while not self._has_room() and time.monotonic() < deadline:
            time.sleep(_PERIOD_S)
        self._room -= 1

    def _has_room(self) -> bool:
        if self._room <= 0:
            self._room = LONGEST - self._longest_queue()
        return self._room > 0

    def _longest_queue(self) -> int:
        now = time.monotonic()
        try:
            seen = queues(self._metrics_url, timeout=_METRICS_TIMEOUT_S)
        except CallError as error:
            self._warn_of(str(error), now)
            return 0
        behind = [name for name in seen.pending if name.startswith(f"{PUBLIC_MODEL}_") and name != self._model]
        if not behind:
            self._warn_of("a server without this repository", now)
        self._lost_at |= {name: now for name, count in seen.lost.items() if count > self._lost.get(name, count)}
        self._lost = seen.lost
        alive = [name for name in behind if now - self._lost_at.get(name, -_FAILS_S) >= _FAILS_S]
        return max((seen.pending[name] for name in alive), default=0)

    def _warn_of(self, what: str, now: float) -> None:
        if now >= self._silent_until:
            self._silent_until = now + _SILENCE_S
            self._warn(f"the queues behind have no limit, {METRICS}={self._metrics_url} does not show them: {what}")
