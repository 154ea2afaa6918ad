"""Count the looks for which this machine lacked something: they say nothing about the server."""

import errno
import threading
import time
from collections.abc import Callable

from m2f_backend.calls import CannotCallError

CANNOT_LOOK = (CannotCallError, OSError, MemoryError)  # this machine lacks something; the server may be well


class Missed:
    """Counts the looks for which this machine lacked something, and logs them now and then.

    Args:
        tell: called with the number of looks and the latest reason.
        period: seconds between two log lines.
    """

    def __init__(self, tell: Callable[[int, str], None], period: float) -> None:
        self._tell = tell
        self._period = period
        self._lock = threading.Lock()
        self._times = 0
        self._why = ""
        self._next_at = 0.0

    def add(self, error: BaseException) -> None:
        """Count a look."""
        with self._lock:
            self._times += 1
            self._why = str(error) or type(error).__name__

    def tell(self) -> None:
        """Log the looks since the last line, if it is time to."""
        if self._times and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + self._period
            with self._lock:
                times, self._times = self._times, 0
            self._tell(times, self._why)


def start_thread(target: Callable[..., None], *args: object) -> None:
    """Start a thread.

    Raises:
        OSError: this machine has no room for a thread now.
    """
    try:
        threading.Thread(target=target, args=args, daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
