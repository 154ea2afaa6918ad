"""What surrounds a command, such as streams that are closed, full or not UTF-8: no traceback comes of it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click


def prepare() -> None:
    """Let output work everywhere: a closed stream drops it, and a character that a stream cannot encode becomes `?`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 (open until the end)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]  # rich would print nothing


@contextmanager
def surroundings() -> Iterator[None]:
    """End the command with one message if the system fails, for example because a disk is full or a folder is gone.

    If nobody reads the output any more, the command ends without a word.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        _drop_output()
        if error.errno != errno.EPIPE:
            where = "the working directory" if error.errno == errno.ENOENT else "standard output"
            with suppress(OSError):
                click.echo(f"m2f: {error.filename or where}: {error.strerror or error}", err=True)
        sys.exit(1)


def _drop_output() -> None:
    """Let nothing more go to standard output: Python would report at its end that it cannot write the rest."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
