"""How the time grows with instances, mask area, output and queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from m2f.kernels import NUMPY, Kernel

from . import ours
from .scenes import Case, Size, synthetic
from .timing import interleaved

OUTPUT = (800, 1333)
OUTPUTS: tuple[Size, ...] = ((480, 640), (720, 960), (960, 1280), (1440, 1920), (1920, 2560), (2400, 3200))
FACTORS = (0.25, 0.5, 1, 1.5, 2)  # of an object's side
INSTANCES = (1, 5, 15, 30, 60, 100)
QUERIES = (50, 100, 200, 400)


@dataclass(frozen=True)
class Row:
    """One point.

    Attributes:
        panel: what grows.
        x: how much of it: a number, or pixels.
        instances: found.
        mask_pixels: of all their masks.
        kernel: of ours.
        median_ms: time.
    """

    panel: str
    x: float
    instances: int
    mask_pixels: int
    kernel: str
    median_ms: float


def scenes() -> Iterator[tuple[str, float, Case]]:
    """Yield panel, x and case of every point; whatever does not grow is 15 objects of 100 queries at 800 x 1333."""
    for objects in INSTANCES:
        yield "instances", objects, synthetic(objects, OUTPUT)
    for factor in FACTORS:
        yield "mask area", 0, synthetic(15, OUTPUT, side_scale=factor)
    for output in OUTPUTS:
        pixels = output[0] * output[1]
        yield "output, objects grow with it", pixels, synthetic(15, output)
        yield "output, objects stay", pixels, synthetic(15, output, side_scale=(480 * 640 / pixels) ** 0.5)
    for queries in QUERIES:
        yield "queries", queries, synthetic(15, OUTPUT, queries=queries)


def measure(kernels: Iterable[Kernel], points: Iterable[tuple[str, float, Case]], *, rounds: int) -> list[Row]:
    """Time every point with each kernel."""
    rows = []
    for panel, x, case in points:
        times = interleaved(
            {kernel.name: partial(ours.run, case, kernel) for kernel in kernels}, rounds=rounds, turn_s=0.03
        )
        found = ours.run(case, NUMPY)
        mask_pixels = int(found.areas.sum())
        for kernel, time in times.items():
            rows.append(Row(panel, x or mask_pixels, len(found.scores), mask_pixels, kernel, time.median_ms))
    return rows


def explained(rows: Iterable[Row], kernel: str) -> float:
    """Return how much of the variance of the time (R squared) is linear in mask pixels and instances alone."""
    line = [row for row in rows if row.kernel == kernel]
    times = np.array([row.median_ms for row in line])
    factors = np.array([(1, row.mask_pixels, row.instances) for row in line], float)
    factors /= factors.max(axis=0)
    predicted = factors @ np.linalg.lstsq(factors, times, rcond=None)[0]
    return float(1 - np.var(times - predicted) / np.var(times))


def factor(rows: Iterable[Row], panel: str, kernel: str) -> tuple[float, float]:
    """Return by how much x and the time grow from the first to the last point of a panel."""
    line = sorted((row.x, row.median_ms) for row in rows if (row.panel, row.kernel) == (panel, kernel))
    (first_x, first), (last_x, last) = line[0], line[-1]
    return last_x / first_x, last / first
