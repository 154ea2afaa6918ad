"""Waiting for a server that is away: a restart, or a queue that is full, does not end a run of hours."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Lock
from typing import TypeVar

from m2f_client.client_errors import ModelNotFound, ServerUnavailable
from m2f_client.printable import complain

AWAY = (ServerUnavailable, ModelNotFound)  # every further image would fail likewise
T = TypeVar("T")
_PAUSE_S = 1.0


class Patience:
    """Asks again while a server is away. Safe to call from several threads.

    Args:
        seconds: longest time without an answer to any request.
        stop: ends the waiting.
        clock: seconds that only grow.
    """

    def __init__(self, seconds: float, stop: Event, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._stop, self._clock = seconds, stop, clock
        self._answered = clock()
        self._said, self._lock = False, Lock()

    def __call__(self, ask: Callable[[], T]) -> T:
        """Return what `ask` returns, asked again for as long as it raises one of AWAY.

        Raises:
            ServerUnavailable, ModelNotFound: no request was answered for too long, or the run is stopping.
        """
        begun = self._clock()
        while True:
            try:
                answer = ask()
            except AWAY as error:
                left = max(begun, self._answered) + self._seconds - self._clock()
                if self._stop.is_set() or left <= 0:
                    raise
                self._say(error)
                self._stop.wait(min(left, _PAUSE_S))
            else:
                self._answered = self._clock()
                return answer

    def _say(self, error: Exception) -> None:
        """Say why the run waits, once."""
        with self._lock:
            said, self._said = self._said, True
        if not said:
            complain(f"{error}; asking again, for up to {self._seconds:g} s without an answer")
