"""Measure the cells of a part that are not in its journal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.progress import Progress

from .journal import Journal
from .part import Part, UnavailableError

_LONGEST_REASON = 600


@dataclass(frozen=True)
class Missing:
    """A cell without figures.

    Attributes:
        part: name of the part.
        cell: parameters of the cell; empty if the part itself could not be read.
        reason: what went wrong, or what this machine lacks.
        failed: whether the measurement went wrong; False if this machine cannot measure the cell.
    """

    part: str
    cell: Mapping[str, Any]
    reason: str
    failed: bool

    def __str__(self) -> str:
        if self.failed:
            return f"{named(self.part, self.cell)}: failed: {self.reason}"
        return f"{self.part}: not measured here: {self.reason}"


def run(part: Part, journal: Journal, progress: Progress) -> list[Missing]:
    """Measure the cells that the journal lacks, and return those that gave no figures."""
    task = progress.add_task(part.name, total=len(part.cells))
    missing: list[Missing] = []
    with _Stages(part) as stages:
        for cell in part.cells:
            if cell not in journal:
                progress.update(task, description=named(part.name, cell))
                try:
                    with _limit(part.limit_s):
                        journal.add(cell, part.measure(stages.for_cell(cell), **cell))
                except Exception as error:  # whatever it is, the other cells can be measured
                    stages.close()
                    missing.append(_missing(part, cell, error))
                    if missing[-1].failed:
                        progress.console.print(f"[red]{escape(str(missing[-1]))}", highlight=False, soft_wrap=True)
            progress.advance(task)
    progress.update(task, description=part.name)
    return missing


def _missing(part: Part, cell: Mapping[str, Any], error: Exception) -> Missing:
    if isinstance(error, UnavailableError):
        return Missing(part.name, cell, str(error), failed=False)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return Missing(part.name, cell, reason[-_LONGEST_REASON:], failed=True)  # a tool's own message comes last


def named(part: str, cell: Mapping[str, Any]) -> str:
    """Return a cell's name for people."""
    return " ".join([part, *(f"{name}={value}" for name, value in cell.items())])


class _Stages:
    """The stage of the current cell; kept for the next cell if that shares it."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._stack = ExitStack()
        self._parameters: dict[str, Any] | None = None
        self._stage: Any = None
        self._broken: dict[str, Exception] = {}

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def for_cell(self, cell: Mapping[str, Any]) -> Any:
        """Return the open stage of a cell. A stage that could not be opened is not tried again for the next cell."""
        parameters = {name: cell[name] for name in self._part.shared}
        if parameters == self._parameters:
            return self._stage
        self.close()
        if (known := self._broken.get(str(parameters))) is not None:
            raise known
        try:
            self._stage = self._stack.enter_context(self._part.stage(**parameters))
        except Exception as error:
            self._broken[str(parameters)] = error
            raise
        self._parameters = parameters
        return self._stage

    def close(self) -> None:
        self._parameters = None
        self._stack.close()


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after some seconds. Another thread gets no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
