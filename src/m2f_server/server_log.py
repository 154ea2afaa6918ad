"""Copy the log of a server while it is written."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def copy_log(lines: Iterable[bytes], log_path: Path, max_bytes: int | None) -> None:
    """Copy lines to standard error and to a file until they end.

    A failing write, for example on a full disk, does not stop the copying: the server would block on a full pipe.

    Args:
        lines: the log.
        log_path: file to append to.
        max_bytes: size from which the file is emptied; None for no limit.
    """
    with log_path.open("ab", buffering=0) as log:
        for line in lines:
            with suppress(OSError):
                if max_bytes is not None and log.tell() > max_bytes:
                    log.truncate(0)
                log.write(line)
            with suppress(OSError):
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
