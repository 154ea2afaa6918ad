"""What the rows have to show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import compare, growth, memory, served


@dataclass(frozen=True)
class Target:
    """A bound and what was measured.

    Attributes:
        name: what is bound.
        bound: `>=` or `<=` and a figure.
        measured: the figure of this run; None where this machine cannot tell.
        passed: whether it holds.
    """

    name: str
    bound: str
    measured: float | None
    passed: bool | None


def judge(
    rows: Sequence[compare.Row],
    memory_rows: Sequence[memory.Row],
    growth_rows: Sequence[growth.Row],
    served_rows: Sequence[served.Row],
) -> list[Target]:
    """Hold the run against each target."""
    best = _best(rows)
    headline = "15 objects, 800x1333"
    rle = next(row for row in rows if row.case == headline)
    return [
        _at_least("numpy against mmdet + encode, 15 at 800x1333", 100, _ratio(rows, headline, "m2f numpy")),
        _at_least("AVX2 against mmdet + encode, 15 at 800x1333", 400, _ratio(rows, headline, "m2f avx2")),
        _at_least("AVX-512 against mmdet + encode, 15 at 800x1333", 900, _ratio(rows, headline, "m2f avx512")),
        _at_least(f"{best} against mmdet + encode, 15 at 480x640", 300, _ratio(rows, "15 objects, 480x640", best)),
        _at_least(
            f"{best} against mmdet + encode, 100 detections", 400,
            _ratio(rows, "15 objects, 100 detections, 800x1333", best),
        ),
        _at_most(f"{best} over the floor, 15 at 800x1333", 3, _over_floor(rows, headline, best)),
        _at_most("pixels elsewhere than mmdet's, of all, every case", 1e-7, _share_elsewhere(rows)),
        _at_least("dense over RLE response, 15 at 800x1333", 100, rle.dense_bytes / rle.response_bytes),
        *(
            _at_most(f"peak memory of {way} in masks, up to 100 instances", 2, peak)
            for way, peak in _peaks(memory_rows).items()
        ),
        *(
            target
            for row in served_rows
            if row.model == served.STEP
            for target in (
                _at_most(f"compute_infer over the bare function, {row.case}, {row.transport}", 2, row.over_bare),
                _at_most(f"  without the backend's own share, {row.case}, {row.transport}", 2, row.work_over_bare),
            )
        ),
        *_growth(growth_rows, best.removeprefix("m2f ")),
    ]  # fmt: skip


def _growth(rows: Sequence[growth.Row], kernel: str) -> Iterable[Target]:
    """More queries and a larger image, the masks as they are, may cost little: time follows masks and instances."""
    for panel in ("queries", "output, objects stay"):
        x, time = growth.factor(rows, panel, kernel)
        yield _at_most(f"{kernel}: time grows by, where {panel} x {x:.0f}", 2, time)
    yield _at_least(
        f"{kernel}: share of the variance that mask pixels and instances explain", 0.95, growth.explained(rows, kernel)
    )


def _share_elsewhere(rows: Sequence[compare.Row]) -> float:
    """Which share of the pixels of all masks mmdetection's rounding puts on the other side of 0."""
    held = [row for row in rows if row.way == compare.MMDET]
    return sum(row.pixels or 0 for row in held) / max(1, sum(row.dense_bytes for row in held))


def _best(rows: Sequence[compare.Row]) -> str:
    return next(row.way for row in rows if row.way.startswith("m2f "))


def _find(rows: Sequence[compare.Row], case: str, way: str) -> compare.Row | None:
    return next((row for row in rows if (row.case, row.way) == (case, way)), None)


def _ratio(rows: Sequence[compare.Row], case: str, way: str) -> float | None:
    row = _find(rows, case, way)
    return row.ratio if row else None


def _over_floor(rows: Sequence[compare.Row], case: str, way: str) -> float | None:
    row = _find(rows, case, way)
    return row.over_floor if row else None


def _peaks(rows: Sequence[memory.Row]) -> dict[str, float]:
    ways = dict.fromkeys(row.way for row in rows if row.way != compare.MMDET)
    return {way: max(row.masks for row in rows if row.way == way) for way in ways}


def _at_least(name: str, bound: float, measured: float | None) -> Target:
    return Target(name, f">= {bound:g}", measured, None if measured is None else measured >= bound)


def _at_most(name: str, bound: float, measured: float | None) -> Target:
    return Target(name, f"<= {bound:g}", measured, None if measured is None else measured <= bound)
