"""How many images a second several replicas answer together, on each way to them, and how even the ways are.

Replicas have sleeping engines, so all of them fit on a few cores.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from . import rolling
from .frame import Part, Row, Table
from .rolling.paths import ENVOY, PATHS, opened
from .rolling.replicas import Replicas, replicas

FLEETS = {"20": (50,), "20 20 20 20": (50, 50, 50, 50), "20 5": (50, 200)}  # images/s: milliseconds of an image
ONE, FOUR, UNEVEN = FLEETS
RUNS = 3
WARM_S, MEASURED_S = 1.5, 8.0


def part(*, quick: bool) -> Part:
    """Return a cell for each fleet, way and run."""
    runs = range(1, 2 if quick else RUNS + 1)
    settings = itertools.product([ONE, UNEVEN] if quick else FLEETS, [ENVOY] if quick else PATHS, runs)
    return Part(
        name="balance",
        title="What replicas carry together",
        about=f"Sleeping engines, {rolling.IN_FLIGHT} requests in flight over gRPC, for {MEASURED_S:.0f} s.",
        cells=[dict(zip(("replicas", "path", "run"), setting, strict=True)) for setting in settings],
        shared=("replicas",),
        stage=staged,
        measure=measured,
        tables=tables,
    )


@contextmanager
def staged(*, replicas: str) -> Iterator[Replicas]:
    """Run a fleet of `FLEETS` for the length of the `with` block."""
    with started(FLEETS[replicas], rolling.DRAIN) as found:
        yield found


started = replicas


def measured(stage: Replicas, *, path: str, **_: Any) -> list[Row]:
    """Count answers."""
    with opened(path, "grpc", stage) as way, rolling.load(stage, way) as outcomes:
        time.sleep(WARM_S)
        begin = time.monotonic()
        time.sleep(MEASURED_S)
        end = time.monotonic()
    if bad := [outcome["why"] or outcome["kind"] for outcome in outcomes if outcome["kind"] != "right"]:
        raise ValueError(f"{len(bad)} requests were not answered right: {bad[0]}")
    carried = [outcome for outcome in outcomes if begin < outcome["ended"] <= end]
    shares = [sum(begin < when <= end for when, _ in replica.answered()) for replica in stage.all]
    return [{"images_s": len(carried) / (end - begin), "shares": " ".join(map(str, shares))}]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return the rate of each fleet on each way, and its part of what its replicas carry one by one."""
    best: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda row: row["images_s"]):
        best.setdefault((row["replicas"], row["path"]), row)  # the least of the runs
    lines = []
    for (fleet, path), row in sorted(best.items(), key=lambda item: (list(FLEETS).index(item[0][0]), item[0][1])):
        one = best.get((ONE, path))
        times = row["images_s"] / one["images_s"] if one else None
        lines.append(
            [fleet, path, row["images_s"], times, row["images_s"] / sum(map(int, fleet.split())), row["shares"]]
        )
    columns = ["replicas, images/s", "path", "images/s", "times one replica", "of the sum", "answers of each"]
    return [Table("carried", columns, lines, "The least of the runs:")]
