"""A hundred replicas, simulated: a rolling update, a burst; and few replicas, as they were measured.

No fleet of this size has been run. What few replicas do is simulated too, beside what was measured.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..autoscaling import measure as autoscaling
from ..autoscaling.scaler import TARGETS
from ..frame import Part, Row, Table, UnavailableError
from .scenarios import Burst, Update, burst, carried, levels, rolling_update

RESULTS = Path(__file__).resolve().parents[1] / "results"
REPLICAS = 100
FEW = 10  # for --quick

CARRIED = {  # replicas as in balance.csv, path there: how it is simulated
    ("20 20 20 20", "list of addresses"): ([0.05] * 4, "in turn"),
    ("20 5", "list of addresses"): ([0.05, 0.2], "in turn"),
    ("20 5", "Envoy"): ([0.05, 0.2], "least request"),
}
UPDATES: Mapping[str, Mapping[str, Any]] = {
    "without anything": {},
    "--drain-delay 2, noticed after 5 s": {"drain_delay_s": 2},
    "--drain-delay 10, noticed after 5 s": {"drain_delay_s": 10},
    "asked again at up to 5 others": {"tries": 6},
    "both": {"drain_delay_s": 10, "tries": 6},
    "both, at 90 % of the load": {"drain_delay_s": 10, "tries": 6, "share": 0.9},
}
BURSTS = {
    f"{' and '.join(by)}, start {start_s} s": {"targets": {name: TARGETS[name] for name in by}, "start_s": start_s}
    for by in (("busy",), ("busy", "queue_s"))
    for start_s in (30, 120)
}


def part(*, quick: bool) -> Part:
    """Return a cell for each case."""
    replicas = FEW if quick else REPLICAS
    cells = [{"scenario": "carried", "case": " | ".join(case)} for case in CARRIED]
    cells += [{"scenario": "levels", "case": "autoscaling"}]
    cells += [{"scenario": "update", "case": case, "replicas": replicas} for case in UPDATES]
    cells += [{"scenario": "burst", "case": case, "replicas": replicas} for case in BURSTS]
    return Part(
        name="fleet",
        title="A hundred replicas, simulated",
        about=(
            f"Discrete events, seeded. Replicas of 20 images a second; {REPLICAS // 10} of {REPLICAS} are replaced at "
            "once. Nothing here was run, except where it says measured."
        ),
        cells=cells,
        measure=measured,
        limit_s=900,
        tables=tables,
    )


def measured(_: None, *, scenario: str, case: str, replicas: int = 0) -> Sequence[Row]:
    """Simulate a case."""
    if scenario == "carried":
        fleet, path = case.split(" | ")
        image_s, balancing = CARRIED[fleet, path]
        found = [
            float(row["images_s"]) for row in _results("balance") if (row["replicas"], row["path"]) == (fleet, path)
        ]
        return [{"measured": statistics.median(found), "simulated": carried(image_s, balancing=balancing)}]
    if scenario == "levels":
        return list(_levels())
    if scenario == "update":
        return [rolling_update(Update(replicas=replicas, at_once=max(1, replicas // 10), **UPDATES[case]))]
    return [burst(Burst(replicas=replicas, **BURSTS[case]))]


def _levels() -> list[Row]:
    """Return the end of each level of `autoscaling`: measured, and simulated with the same times of requests."""
    rows: list[Row] = [
        {name: float(row[name]) for name in ("offered_s", "busy", "queue_s")} for row in _results("autoscaling")
    ]
    table = autoscaling.tables([{**dict.fromkeys(autoscaling.SHOWN), **row} for row in rows])[0]
    found = levels(
        autoscaling.GPU_MS / 1e3,
        autoscaling.SHARES,
        autoscaling.STEP_S,
        replicas=autoscaling.REPLICAS,
        seed=autoscaling.SEED,
    )
    columns = list(autoscaling.SHOWN)
    lines = [dict(zip(columns, line, strict=True)) for line in table.lines]
    return [
        {"offered_s": line["offered_s"], **{f"{name}_{kind}": values[name] for name in ("busy", "queue_s")
         for kind, values in (("measured", line), ("simulated", level))}}
        for line, level in zip(lines, found, strict=True)
    ]  # fmt: skip


def _results(part: str) -> list[dict[str, str]]:
    path = RESULTS / f"{part}.csv"
    if not path.exists():
        raise UnavailableError(f"there is no {path.name} to compare with")
    with path.open() as file:
        return list(csv.DictReader(file))


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return what was measured beside what was simulated, then the updates and the bursts."""
    kinds = {
        name: [row for row in rows if row["scenario"] == name] for name in ("carried", "levels", "update", "burst")
    }
    found = [
        Table(
            "carried",
            ["replicas, images/s", "way", "measured, images/s", "simulated"],
            [[*row["case"].split(" | "), row["measured"], row["simulated"]] for row in kinds["carried"]],
            "16 requests in flight:",
        ),
        Table(
            "levels",
            ["images/s offered", "busy, measured", "busy, simulated", "queue, s, measured", "queue, s, simulated"],
            [[row[name] for name in ("offered_s", "busy_measured", "busy_simulated", "queue_s_measured",
                                     "queue_s_simulated")] for row in kinds["levels"]],
            "Two replicas of 5 images/s under the load of `autoscaling`, the last minute of each level:",
        ),
        Table(
            "update",
            ["rolling update", "requests", "failed", "sent again", "p99, ms", "minutes"],
            [[row["case"], *(row[name] for name in ("requests", "failed", "sent_again", "p99_ms", "minutes"))]
             for row in kinds["update"]],
            "Replicas replaced under load:",
        ),
        Table(
            "burst",
            ["scaled by", "requests", "turned away", "share", "seconds until answers take 1 s", "replicas after"],
            [[row["case"], *(row[name] for name in ("requests", "turned_away", "turned_away_share", "late_until_s",
                                                    "replicas_after"))] for row in kinds["burst"]],
            "The load goes at once from 0.6 to 1.5 of what the replicas carry:",
        ),
    ]  # fmt: skip
    return [table for table in found if table.lines]
