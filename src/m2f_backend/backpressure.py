"""Hold preprocessing back while the queues of the later steps are long.

Only the queue of preprocessing refuses requests, before their images are decoded. The queues of the later steps refuse
nothing (`stub_2_51` says why), so this module keeps them short. docs/limits.md has the figures.
"""

import os
import time
from collections.abc import Callable, Mapping

from m2f.contract import HEAD_ENGINE, STEPS, model_name
from m2f.limits import MAX_BATCH_SIZE
from m2f_backend.calls import CallError, queues

METRICS = "M2F_METRICS"  # environment variable: `host:port` of the server's metrics
LONGEST = 2 * MAX_BATCH_SIZE  # the next batch, and one more on its way

_OWN = "preprocess"  # of STEPS
_TRITON_METRICS = "127.0.0.1:8002"  # Triton's default
_METRICS_TIMEOUT_S = 1.0
_PERIOD_S = 0.05  # reading the metrics takes 1 ms
_LONGEST_WAIT_S = 30.0  # for a queue that does not move; the supervisor finds out why
_FAILING_S = 3.0  # requests of a dead process fail at least this often
_SILENCE_S = 10.0  # between two warnings


class Backpressure:
    """Decides when one instance of preprocessing may send its next request.

    The queue of a dead process does not count while its requests fail: queued requests keep a reference to the unloaded
    model, and new requests go to the model that was loaded in its place.

    Args:
        model: name of the preprocessing model. Only the queues of the other steps of its export count.
        warn: called with the reason when the queues cannot be read. They then count as empty.
        now: returns the time in seconds.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        model: str,
        warn: Callable[[str], None],
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        name = model.removesuffix(f"_{_OWN}")
        self._behind = {model_name(name, step) for step in (*STEPS, HEAD_ENGINE) if step != _OWN}
        self._warn = warn
        self._now = now
        self._sleep = sleep
        self._metrics_url = os.environ.get(METRICS, _TRITON_METRICS)
        self._room = 0
        self._lost: Mapping[str, int] = {}
        self._lost_at: dict[str, float] = {}
        self._silent_until = 0.0

    def wait(self) -> None:
        """Return when the longest queue of a later step has room for a request, or after 30 s.

        Re-reads the metrics only after the room found last time is used up. Other senders, such as a second instance or
        clients of the tensor ensemble, may make a queue longer than `LONGEST` meanwhile.
        """
        deadline = self._now() + _LONGEST_WAIT_S
        while not self._has_room() and self._now() < deadline:
            self._sleep(_PERIOD_S)
        self._room -= 1

    def _has_room(self) -> bool:
        if self._room <= 0:
            self._room = LONGEST - self._longest_queue()
        return self._room > 0

    def _longest_queue(self) -> int:
        now = self._now()
        try:
            seen = queues(self._metrics_url, timeout=_METRICS_TIMEOUT_S)
        except CallError as error:
            self._warn_of(str(error), now)
            return 0
        behind = [name for name in seen.pending if name in self._behind]
        if not behind:
            self._warn_of("a server without this repository", now)
        self._lost_at |= {name: now for name, count in seen.lost.items() if count > self._lost.get(name, count)}
        self._lost = seen.lost
        alive = [name for name in behind if now - self._lost_at.get(name, -_FAILING_S) >= _FAILING_S]
        return max((seen.pending[name] for name in alive), default=0)

    def _warn_of(self, what: str, now: float) -> None:
        if now >= self._silent_until:
            self._silent_until = now + _SILENCE_S
            self._warn(f"backpressure is off: {METRICS}={self._metrics_url} does not show the later queues: {what}")
