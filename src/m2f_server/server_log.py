"""Take the log of a server from its pipe, keep the end of it, and pass it on."""

import os
import select
import subprocess
import threading

from m2f_server.outlet import Outlet

_MAX_BYTES = 1 << 20  # kept of the log
_CHUNK = 1 << 16
_PATIENCE_S = 0.25  # a disk is slower than a pipe: a burst of lines waits for it, once
_LAST_LINES_S = 2.0


class ServerLog:
    """The log of one server. A thread empties the pipe, because a server blocks when its pipe is full.

    Args:
        process: the server; its standard output is a pipe.
        file: outlet that is closed at the end of the log.
        echo: another outlet.
    """

    def __init__(self, process: subprocess.Popen[bytes], *, file: Outlet, echo: Outlet | None = None) -> None:
        assert process.stdout is not None
        self._pipe = process.stdout
        self._file = file
        self._echo = echo
        self._lock = threading.Lock()
        self._kept = bytearray()
        self._begun = b""  # the line that has not ended yet
        os.set_blocking(self._pipe.fileno(), False)
        threading.Thread(target=self._run, daemon=True).start()

    def read(self) -> str:
        """Return the end of the log, 1 MiB at most, with all that the server has written so far."""
        with self._lock:
            self._take()
            return self._kept[-_MAX_BYTES:].decode(errors="replace")

    def close(self) -> None:
        """Pass the last lines on, after the server and its stubs have ended."""
        with self._lock:
            self._take()
        self._file.close(_LAST_LINES_S)

    def _run(self) -> None:
        more = select.poll()
        more.register(self._pipe, select.POLLIN)
        while not self._pipe.closed:
            more.poll()
            with self._lock:
                self._take()

    def _take(self) -> None:
        """Read what is in the pipe, and close it if the server has ended. The caller has the lock."""
        try:
            while not self._pipe.closed:
                chunk = os.read(self._pipe.fileno(), _CHUNK)
                self._keep(chunk)
                self._pass_on(chunk)
                if not chunk:
                    self._pipe.close()
        except BlockingIOError:  # nothing more yet
            pass

    def _keep(self, chunk: bytes) -> None:
        self._kept += chunk
        if len(self._kept) > 2 * _MAX_BYTES:
            del self._kept[:-_MAX_BYTES]

    def _pass_on(self, chunk: bytes) -> None:
        """Give the outlets the lines that have ended."""
        lines, newline, self._begun = (self._begun + chunk).rpartition(b"\n")
        if self._begun and (not chunk or len(self._begun) > _CHUNK):  # the end of the log, or a very long line
            lines, newline, self._begun = lines + newline + self._begun, b"\n", b""
        if newline:
            self._file.put(lines + newline, patience=_PATIENCE_S)
            if self._echo:
                self._echo.put(lines + newline)
