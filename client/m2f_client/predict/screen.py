"""What people see: a table for each of a few images, a line and a progress bar for many, and what went wrong."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from m2f_client.predict.table import instances_table
from m2f_client.printable import printable
from m2f_client.result import Result

FEW = 10
"""Images that get a table each; of more, each gets a line."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} images/s", style="progress.data.speed")


class Screen:
    """Prints results to standard output, and progress and complaints to standard error. A context manager.

    Args:
        total: images to do; None where it is not known.
        names: the model's class names.
        silent: standard output is somebody else's: nothing but complaints.
    """

    def __init__(self, total: int | None, names: Sequence[str] | None, *, silent: bool) -> None:
        self._names = names
        self._console = Console(quiet=silent)
        self._tables = total is not None and total <= FEW
        # the bar is drawn where the lines go if both are on a terminal: else they would run into each other
        on = self._console if sys.stdout.isatty() else Console(stderr=True)
        wanted = sys.stderr.isatty() and not silent and not self._tables
        columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TextColumn("left"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=on, transient=True, disable=not wanted)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """Count one image."""
        self._progress.advance(self._task)

    def show(self, name: str, result: Result, written: Sequence[Path]) -> None:
        """Print what was found in one image."""
        files = ", ".join(map(str, written))
        if self._tables:
            self._console.print(instances_table(name, result, self._names, files))
            return
        height, width = result.size
        found = ", ".join(f"{label} x{count}" for label, count in Counter(result.names(self._names)).most_common())
        line = printable(f"{name}  {width}x{height}  {found or 'nothing'}")
        self._console.print(Text(line), soft_wrap=True)

    def note(self, message: str) -> None:
        """Print a remark."""
        self._console.print(Text(printable(message), style="dim"), soft_wrap=True)


def complain(message: str) -> None:
    """Say on standard error what went wrong."""
    click.echo(f"m2f: {printable(message)}", err=True)
