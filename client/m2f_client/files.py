"""Read a file that may be anything: a picture, a pipe that nobody writes to, a device without end, a growing log."""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path

from m2f_client.client_errors import UnreadableImage

MAX_BYTES = 256 << 20
"""Largest file in bytes, downloads included; larger than any image that the server accepts."""

PIPE = "a pipe"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: PIPE,
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_CHUNK = 1 << 16


def read_file(path: str | os.PathLike[str], *, timeout: float | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a file, or what comes through a pipe until its end.

    Args:
        path: the file or pipe; the shell's `<(command)` is a pipe.
        timeout: seconds that a pipe may take; None waits for ever.
        max_bytes: largest content.

    Raises:
        UnreadableImage: the file cannot be read, is a folder, a device or a socket, or is too large. The message does
            not name the file.
    """
    try:
        status = Path(os.fsdecode(path)).stat()
        kind = not_a_file(status.st_mode)
        if kind not in (None, PIPE):
            raise UnreadableImage(f"{kind}, not a file")
        if status.st_size > max_bytes:
            raise _too_large(max_bytes)
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # waits for no writer of a pipe
        try:
            return _read(number, status.st_size, timeout if kind == PIPE else None, max_bytes)
        finally:
            os.close(number)
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error
    except ValueError as error:  # a null character
        raise UnreadableImage(str(error)) from error


def not_a_file(mode: int) -> str | None:
    """Return what a file's mode stands for, such as `a pipe`; None for a file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def _read(number: int, expected: int, timeout: float | None, max_bytes: int) -> bytes:
    """Return what comes until the end; the fastest way is one read of the expected size."""
    end = None if timeout is None else time.monotonic() + timeout
    waiting = select.poll()
    waiting.register(number, select.POLLIN)
    parts: list[bytes] = []
    left = max_bytes
    while True:
        if not waiting.poll(None if end is None else 1e3 * max(0.0, end - time.monotonic())):
            raise UnreadableImage(f"the pipe did not end within {timeout:g} s")
        part = os.read(number, min(left, max(_CHUNK, expected)) + 1)
        if not part:
            return b"".join(parts)
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> UnreadableImage:
    return UnreadableImage(f"larger than {max_bytes >> 20} MiB")
