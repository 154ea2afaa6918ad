"""Notice within seconds that a server is frozen, without taking a busy server for a frozen one.

A canary has much patience, because a busy server may take long. So between two canaries the server is asked once a
second for Triton's `/v2/health/live`, which waits in no queue. A server that does not answer is frozen if the kernel
says one of these:

- A thread is in the handler of a fatal signal. Triton prints the stack there, and may wait for ever for a lock that the
  interrupted code holds (`triton_2_51`). No thread comes back from this handler.
- For some seconds no thread runs, waits for a processor or waits for a disk, and the process uses no processor time.
"""

import os
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from m2f_backend.calls import SHORTAGES
from m2f_server import processes
from m2f_server.addresses import family
from m2f_server.timing import Timing

_REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: m2f\r\nConnection: close\r\n\r\n"
_FATAL = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
_IDLE = 0.02  # processors that an idle server uses at most


@dataclass(frozen=True)
class _Quiet:
    """A moment since which a server has been quiet.

    Attributes:
        since: the moment, as `time.monotonic`.
        seconds: processor time that the server had used by then.
    """

    since: float
    seconds: float


class Pulse:
    """Asks a server for signs of life. No call waits for the server.

    Args:
        address: `host:port` of the server's HTTP port.
        pid: process id of the server.
        timing: how long to wait.

    Attributes:
        trouble: why the server does not answer; empty if it answers, or is busy.
        frozen: whether only the end of the server helps.
    """

    def __init__(self, address: str, pid: int, timing: Timing) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._pid = pid
        self._timing = timing
        self._probe: _Probe | None = None
        self._next_at = 0.0
        self._handles_since: float | None = None  # a fatal signal
        self._quiet: _Quiet | None = None
        self.trouble = ""
        self.frozen = False

    def beat(self, *, loading: bool) -> None:
        """Ask the server if it is time to, and see whether it has answered. Call it several times a second.

        Args:
            loading: whether a model is being loaded, for which all threads that serve HTTP may wait.

        Raises:
            OSError: this machine lacks a file descriptor, memory or a port; nothing was found out.
        """
        now = time.monotonic()
        if self._probe is None:
            if now >= self._next_at:
                self._probe = _Probe(self._address, until=now + self._timing.pulse_timeout_s)
                self._next_at = now + self._timing.pulse_period_s
        elif self._probe.is_answered():
            self._end_probe()
            self._handles_since, self._quiet, self.trouble = None, None, ""
        elif now >= self._probe.until:
            self._end_probe()
            self._explain(now, loading)

    def close(self) -> None:
        """End the question under way: a server that stops waits for its connections."""
        self._end_probe()

    def _end_probe(self) -> None:
        if self._probe is not None:
            self._probe.close()
        self._probe = None

    def _explain(self, now: float, loading: bool) -> None:
        """Decide whether a server that does not answer is busy or frozen."""
        process = processes.read(self._pid)
        if process is None:  # the watch notices that
            return
        threads = list(processes.threads(self._pid))
        if handled := _fatal_signal(threads):
            self._handles_since = now if self._handles_since is None else self._handles_since
            self.trouble = f"tritonserver hangs while it handles {handled}"
            self.frozen = now - self._handles_since >= self._timing.last_words_s
            return
        quiet = self._quiet
        works = loading or any(thread.state in processes.AT_WORK for thread in threads)
        if quiet is None or works or process.seconds - quiet.seconds > _IDLE * (now - quiet.since):
            self._quiet, self.trouble = _Quiet(now, process.seconds), ""
            return
        self.trouble = f"tritonserver does nothing, and has not answered for {now - quiet.since:.0f} s"
        self.frozen = now - quiet.since >= self._timing.quiet_s


class _Probe:
    """One question to a server.

    Args:
        address: host and port of the server.
        until: when the wait for the answer ends, as `time.monotonic`.

    Raises:
        OSError: this machine lacks something for the question.
    """

    def __init__(self, address: tuple[str, int], until: float) -> None:
        self.until = until
        self._asked = False
        self._socket = socket.socket(family(address[0]))
        self._socket.setblocking(False)
        if (number := self._socket.connect_ex(address)) in SHORTAGES:
            self.close()
            raise OSError(number, os.strerror(number))

    def is_answered(self) -> bool:
        """Return whether the server has said anything."""
        try:
            if not self._asked:
                self._socket.sendall(_REQUEST)
                self._asked = True
            return bool(self._socket.recv(1))
        except OSError:  # not yet, or nobody listens
            return False

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def _fatal_signal(threads: Iterable[processes.Thread]) -> str:
    """Return the fatal signal that a thread handles: during the handler no others than such signals are blocked."""
    fatal = {number: 1 << (number - 1) for number in _FATAL}
    for thread in threads:
        if thread.blocked and not thread.blocked & ~sum(fatal.values()):
            return next(number.name for number, bit in fatal.items() if thread.blocked & bit)
    return ""
