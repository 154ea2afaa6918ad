"""How many images a second several replicas answer together: asked in turn by a client, and through Envoy.

Replicas have sleeping engines, so all of them fit on a few cores.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from . import rolling
from .frame import Part, Row, Table
from .rolling.paths import ENVOY, LIST, opened
from .rolling.replicas import Replicas, replicas

FLEETS = {"20": (50,), "20 20 20 20": (50, 50, 50, 50), "20 5": (50, 200)}  # images/s: milliseconds of an image
ONE, FOUR, UNEVEN = FLEETS
RUNS = 3
WARM_S, MEASURED_S = 1.5, 6.0


def part(*, quick: bool) -> Part:
    """Return a cell for each fleet, way and run."""
    runs = range(1, 2 if quick else RUNS + 1)
    settings = itertools.product([ONE, UNEVEN] if quick else FLEETS, [ENVOY] if quick else (LIST, ENVOY), runs)
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
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["replicas"], row["path"]), []).append(row)
    rates = {key: statistics.median(row["images_s"] for row in group) for key, group in groups.items()}
    lines = [
        [
            fleet,
            path,
            rate,
            rate / rates[ONE, path] if (ONE, path) in rates else None,
            rate / sum(map(int, fleet.split())),
            groups[fleet, path][-1]["shares"],
        ]
        for (fleet, path), rate in rates.items()
    ]
    columns = ["replicas, images/s", "way", "images/s", "times one replica", "of the sum", "answers of each"]
    return [Table("carried", columns, lines, "Medians of the runs, and the answers of each replica in the last run:")]
