"""What a benchmark gives to the runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from .report import Table, everything

Row = dict[str, Any]
"""Strings, numbers, truth values and None by column."""


class UnavailableError(Exception):
    """This machine cannot measure a cell. The message says what is missing; the run does not count it as a failure."""


def _no_stage(**_: Any) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A benchmark: cells, each of which is measured on its own.

    Attributes:
        name: name of the result files, and of the module in `benchmarks`.
        title: heading in the Markdown.
        about: what was measured, in one or two sentences.
        cells: parameters of each cell, in the order of measuring. To interleave rounds, make `round` a parameter.
        measure: `measure(stage, **cell)` returns the rows of a cell: figures by column. The runner puts the cell's
            parameters in front of them. A measurement checks that answers are equal before it times them.
        shared: names of the parameters that `stage` takes.
        stage: `stage(**parameters)` is a context manager for what cells share, such as a server. It stays open while
            the next cells have equal parameters, and is opened anew after a cell that failed.
        limit_s: longest time of one cell with its stage, in seconds; then the cell fails.
        tables: makes the tables of the Markdown from all rows.
        draw: draws all rows into a matplotlib figure; None makes no picture.
    """

    name: str
    title: str
    about: str
    cells: Sequence[Row]
    measure: Callable[..., Sequence[Mapping[str, Any]]]
    shared: Sequence[str] = ()
    stage: Callable[..., AbstractContextManager[Any]] = _no_stage
    limit_s: float = 180
    tables: Callable[[Sequence[Row]], Sequence[Table]] = everything
    draw: Callable[[Sequence[Row], Any], None] | None = field(default=None)
