"""Run benchmarks cell by cell: a journal to go on from, then CSV, Markdown and a picture.

A benchmark is a module of `benchmarks` with a function `part(*, quick: bool) -> Part`. `benchmarks/__main__.py` lists
the modules that `make bench` runs.
"""

from .part import Part, Row, UnavailableError
from .report import Table, pivot

__all__ = ["Part", "Row", "Table", "UnavailableError", "pivot"]
