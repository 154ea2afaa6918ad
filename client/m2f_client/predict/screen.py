"""What `m2f predict` prints: a table for each image if they are few, else a line for each and a progress bar."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from m2f_client.converters.draw import colour
from m2f_client.printable import complain, printable
from m2f_client.result import Result

FEW = 10
"""Up to this many images, each gets a table."""

_LOG_S = 60.0  # from one line about tiles to the next, if there is no terminal


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        return Text("" if task.speed is None else f"{task.speed:.1f} {unit}/s", style="progress.data.speed")


class Screen:
    """Prints results to standard output and a progress bar to standard error. A context manager.

    Args:
        total: number of images; None if unknown.
        names: the model's class names.
        silent: print neither results nor progress, because standard output carries JSON.
        tiled: whether large pictures are done in tiles, so that few pictures may take long.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        total: int | None,
        names: Sequence[str] | None,
        *,
        silent: bool,
        tiled: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = names
        self._console = Console(quiet=silent)
        self._tables = total is not None and total <= FEW
        # If output and errors share a terminal, one console must draw both, or bar and lines overwrite each other.
        on = self._console if sys.stdout.isatty() else Console(stderr=True)
        wanted = sys.stderr.isatty() and not silent and (tiled or not self._tables)
        description = TextColumn("{task.description}", markup=False)
        columns = (description, BarColumn(), MofNCompleteColumn(), _Rate(), TextColumn("left"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=on, transient=True, disable=not wanted)
        self._task = self._progress.add_task("", total=total, unit="images")
        self._tiles: dict[str, TaskID] = {}  # of the pictures in work
        self._logs, self._clock, self._logged = not silent and not sys.stderr.isatty(), clock, clock()

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """Count one image."""
        self._progress.advance(self._task)

    def tiles(self, name: str, done: int, total: int) -> None:
        """Show how many tiles of a picture are done, in a log once a minute.

        Safe to call from several threads, one for each picture.
        """
        if name not in self._tiles:
            self._tiles[name] = self._progress.add_task(printable(name), total=total, unit="tiles")
        self._progress.update(self._tiles[name], completed=done)
        if self._logs and self._clock() - self._logged >= _LOG_S:
            self._logged = self._clock()
            complain(f"{name}: {done} of {total} tiles done")

    def no_tiles(self, name: str) -> None:
        """Show the tiles of a picture no longer."""
        if name in self._tiles:
            self._progress.remove_task(self._tiles.pop(name))

    def show(self, name: str, result: Result, written: Sequence[str]) -> None:
        """Print what was found in one image, and the files written for it."""
        if self._tables:
            self._console.print(_image_table(name, result, self._names, written))
            return
        height, width = result.size
        found = ", ".join(f"{label} x{count}" for label, count in Counter(result.names(self._names)).most_common())
        line = printable(f"{name}  {width}x{height}  {found or 'nothing'}")
        self._console.print(Text(line), soft_wrap=True)

    def note(self, message: str) -> None:
        """Print a remark."""
        self._console.print(Text(printable(message), style="dim"), soft_wrap=True)


def _image_table(
    name: str, result: Result, class_names: Sequence[str] | None, written: Sequence[str]
) -> RenderableType:
    height, width = result.size
    count = f"{len(result)} instance" + ("" if len(result) == 1 else "s")
    parts: list[RenderableType] = [Text.assemble((printable(name), "bold"), f"  {width}x{height}, {count}")]
    if len(result):
        parts.append(_rows(result, class_names))
    if written:
        parts.append(Text(printable(f"wrote {', '.join(written)}"), style="dim"))
    return Group(*parts, Text())


def _rows(result: Result, class_names: Sequence[str] | None) -> Table:
    """Return class, score, box and area of each instance, with a swatch of its colour in the overlay."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for column in ("score", "x1", "y1", "x2", "y2", "area"):
        table.add_column(column, justify="right")
    for index, name in enumerate(result.names(class_names)):
        red, green, blue = colour(index)
        swatch = Text.assemble(("■ ", f"rgb({red},{green},{blue})"), printable(name))
        numbers = [f"{value:.0f}" for value in (*result.boxes[index].tolist(), result.areas[index])]
        table.add_row(swatch, f"{result.scores[index]:.3f}", *numbers)
    return table
