"""Write lines to a file or pipe that may be slow, full or gone, without ever making the caller wait.

A full pipe blocks its writer. A blocked supervisor does not act on a signal, and a blocked `tritonserver` answers no
request. So each outlet has a thread that writes. Lines that an outlet does not take are dropped and counted.
"""

import atexit
import io
import os
import select
import stat
import sys
import threading
from collections import deque
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import Counter

from m2f_backend.logfmt import logfmt

_MOST_BYTES = 1 << 20  # that wait to be written; then lines are dropped
_PIECE = 4096  # PIPE_BUF: a pipe that is ready for writing takes this many bytes without waiting
_TICK_MS = 200
_LAST_LINES_S = 1.0  # for the last lines of this process

DROPPED = Counter("m2f_log_lines_dropped", "Log lines that nobody read, or that the disk did not take", registry=None)


class Target(Protocol):
    """What an outlet writes to."""

    def fileno(self) -> int:
        """Return the file descriptor to write the next lines to."""

    def close(self) -> None:
        """Close the file."""


class LogFile:
    """A file to append to. If the file was moved or removed, it is opened again: logs may be rotated.

    Args:
        path: a file, new or old, or a device or FIFO.
        max_bytes: size from which the file is emptied; None for no limit.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = _open_to_append(path)

    def fileno(self) -> int:
        """Return the file descriptor of the file that has the path now."""
        if not self._has_path():
            moved, self._file = self._file, _open_to_append(self._path)
            moved.close()
        file = self._file.fileno()
        if self._max_bytes is not None and os.fstat(file).st_size > self._max_bytes:
            os.ftruncate(file, 0)
        return file

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _has_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


class Outlet:
    """Writes lines to a target in a thread of its own.

    When 1 MiB waits to be written, new lines are dropped until all of that is written. Then a line says how many are
    missing.

    Args:
        target: where to write to.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # that wait
        self._full = False
        self._dropped = 0  # lines that nobody was told of yet
        self._writes = False
        self._closed = False
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, lines: bytes, *, patience: float = 0.0) -> None:
        """Take whole lines to write, or drop them.

        Args:
            lines: the lines.
            patience: seconds to wait for room before lines are dropped. While lines are dropped, nobody waits.
        """

        def has_room() -> bool:
            return not self._waiting or self._bytes + len(lines) <= _MOST_BYTES

        with self._changed:
            self._full = self._full or not self._changed.wait_for(has_room, patience)
            if self._full or self._closed:
                self._drop(lines)
            else:
                self._waiting.append(lines)
                self._bytes += len(lines)
                self._changed.notify_all()

    def flush(self, timeout: float) -> None:
        """Wait until all lines are written or dropped, for at most `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._writes, timeout)

    def close(self, timeout: float) -> None:
        """Write what waits within `timeout` seconds, and drop the rest."""
        self.flush(timeout)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (lines := self._next()) is not None:
            written = self._write(lines)
            with self._changed:
                if not written:
                    self._drop(lines)
                done = not self._waiting
                self._full = self._full and not done
                dropped = self._dropped
                self._changed.notify_all()
            if written and done and dropped and self._write(event_line("log_lines_dropped", lines=dropped).encode()):
                with self._changed:
                    self._dropped -= dropped
        self._target.close()

    def _drop(self, lines: bytes) -> None:
        self._dropped += lines.count(b"\n")
        DROPPED.inc(lines.count(b"\n"))

    def _next(self) -> bytes | None:
        """Wait for lines and return them; return None when the outlet is closed."""
        with self._changed:
            self._writes = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._writes = True
            lines = self._waiting.popleft()
            self._bytes -= len(lines)
            return lines

    def _write(self, lines: bytes) -> bool:
        """Write lines as soon as the target takes them, and return whether it took them."""
        try:
            file = self._target.fileno()
            if stat.S_ISREG(os.fstat(file).st_mode):
                return os.write(file, lines) == len(lines)
            ready = select.poll()
            ready.register(file, select.POLLOUT)
            while lines:
                while not ready.poll(_TICK_MS):
                    if self._closed:
                        return False
                lines = lines[os.write(file, lines[:_PIECE]) :]
        except OSError:  # a full disk, or a pipe that nobody will read
            return False
        return True


def event_line(event: str, **circumstances: object) -> str:
    """Return a line of the supervisor's log, which says when something happened. Empty circumstances are left out."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {name: value for name, value in circumstances.items() if value != ""}
    return f"{logfmt(time=now, event=event, **fields)}\n"


@cache
def standard_stream(number: int) -> Outlet:
    """Return the outlet to standard output (1) or standard error (2) of this process."""
    outlet = Outlet(io.FileIO(number, "wb", closefd=False))
    atexit.register(outlet.flush, _LAST_LINES_S)
    return outlet


def never_wait_for_a_reader() -> None:
    """Make this process's standard output and standard error outlets, for all that Python writes from now on.

    A standard stream that is closed becomes /dev/null. Otherwise the next file to be opened would take its place.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or io.TextIOWrapper(io.FileIO(os.devnull, "w"))
        with suppress(OSError):  # replaced by something that is no file
            if stream.fileno() == number:
                stream.flush()
                outlet = _Stream(standard_stream(number))
                stream = io.TextIOWrapper(outlet, "utf-8", "backslashreplace", write_through=True)
        setattr(sys, name, stream)


class _Stream(io.RawIOBase):
    """A file of Python's that writes to an outlet."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        lines = bytes(data)
        self._outlet.put(lines)
        return len(lines)


def _open_to_append(path: Path) -> io.FileIO:
    """Open a file. A FIFO is opened for reading too, which does not wait for a reader."""
    flags = os.O_RDWR if path.is_fifo() else os.O_WRONLY | os.O_APPEND | os.O_CREAT
    return io.FileIO(os.open(path, flags, 0o666), "wb")
