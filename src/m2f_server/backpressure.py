"""Backpressure: preprocessing waits while the queues behind it are long.

Triton can refuse at a queue, but one that may refuse forms no batch ahead of time, and loses wake-ups: a request then
waits there until the next one arrives, or half a second (core up to mid-2026; docs/limits.md has the figures). So the
queues of the engine and of the steps behind it refuse nothing, and are kept short from here. What they have no room
for waits in the queue of preprocessing, and is refused there, undecoded.
"""

import os
import time
from collections.abc import Callable

from m2f.contract import MAX_BATCH_SIZE, PUBLIC_MODEL
from m2f_server.control import pending
from m2f_server.errors import CallError

METRICS = "M2F_METRICS"  # environment: `host:port` of the server's metrics
LONGEST = 2 * MAX_BATCH_SIZE  # a queue that holds the next batch while one more is on its way

_METRICS_OF_TRITON = "127.0.0.1:8002"
_METRICS_TIMEOUT_S = 1.0
_PERIOD_S = 0.05  # the metrics take a millisecond
_LONGEST_WAIT_S = 30.0  # for a queue that does not move; somebody else will find out why
_SILENCE_S = 10.0  # after a warning


class Backpressure:
    """What one instance of preprocessing may send on.

    Args:
        model: its name.
        warn: called with the reason when the queues cannot be seen, which are then taken for empty.
    """

    def __init__(self, model: str, warn: Callable[[str], None]) -> None:
        self._model = model
        self._warn = warn
        self._metrics_url = os.environ.get(METRICS, _METRICS_OF_TRITON)
        self._room = 0
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
        try:
            waiting = pending(self._metrics_url, timeout=_METRICS_TIMEOUT_S)
            return max(n for name, n in waiting.items() if name.startswith(f"{PUBLIC_MODEL}_") and name != self._model)
        except (CallError, ValueError) as error:  # no server, or one that has no such models
            if time.monotonic() >= self._silent_until:
                self._silent_until = time.monotonic() + _SILENCE_S
                self._warn(
                    f"no limit on the queues behind, for {METRICS}={self._metrics_url} does not show them: {error}"
                )
            return 0
