"""What is lost when replicas stop, die or are added under load, on each way from a client to them.

Replicas are `m2f serve` with a sleeping engine on loopback addresses. A name has the addresses of those that are ready,
as a headless Service in Kubernetes has.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..frame import Part, Row, Table
from .events import EVENTS, SCALE_UP
from .load import M2F, PLAIN
from .paths import PATHS, PROTOCOLS, Way, opened
from .replicas import Replicas, replicas

ENGINE_MS = 50.0
IN_FLIGHT = 16
RUNS = 3
BEFORE_S, AFTER_S = 1.0, 1.5  # load before the event, and after its end
NEW_S = 10.0  # longest wait for the traffic of a new replica
DRAIN = ("--drain-delay=4", "--grpc-max-connection-age=2000")
SETTINGS = {"as deployed": DRAIN, "without a drain delay": ()}


def part(*, quick: bool) -> Part:
    """Return a cell for each way, event and run."""
    paths, protocols, counts, runs = (PATHS, PROTOCOLS[:1], (2,), 1) if quick else (PATHS, PROTOCOLS, (2, 4), RUNS)
    names = ("settings", "replicas", "protocol", "path", "client", "event", "run")
    numbers = range(1, runs + 1)
    deployed, bare = SETTINGS
    settings = [*itertools.product([deployed], counts, protocols, paths, [M2F], EVENTS, numbers)]
    settings += itertools.product([deployed], [2], ["grpc"], paths[1:], [PLAIN], EVENTS, numbers)
    settings += itertools.product([bare], [2], protocols, paths, [M2F], ["SIGTERM"], numbers)
    settings += itertools.product([bare], [2], ["grpc"], paths[1:], [PLAIN], ["SIGTERM"], numbers)
    return Part(
        name="rolling",
        title="Replicas that stop, die or are added under load",
        about=(
            f"Each replica answers {1e3 / ENGINE_MS:.0f} images/s. {IN_FLIGHT} requests in flight. Replicas, clients "
            "and fronts are on loopback addresses of one machine."
        ),
        cells=[dict(zip(names, setting, strict=True)) for setting in settings],
        shared=("settings", "replicas"),
        stage=staged,
        measure=measured,
        tables=tables,
    )


@contextmanager
def staged(*, settings: str, replicas: int) -> Iterator[Replicas]:
    """Run replicas for the length of the `with` block."""
    options = SETTINGS[settings]
    with running([ENGINE_MS] * replicas, options, keepalive_time=bool(options)) as started:
        yield started


running = replicas


def measured(stage: Replicas, *, path: str, protocol: str, event: str, client: str = M2F, **_: Any) -> list[Row]:
    """Let an event happen under load, and count what became of the requests."""
    stage.start()
    if event == SCALE_UP:
        stage.all[-1].terminate()
    computed_before = [len(replica.answered()) for replica in stage.all]
    with opened(path, protocol, stage) as way, load(stage, way, client=client) as outcomes:
        time.sleep(BEFORE_S)
        new = EVENTS[event](stage)
        waits = [
            first_traffic(replica.answered, ready_at) for replica, ready_at in ((n.replica, n.ready_at) for n in new)
        ]
        time.sleep(AFTER_S)
    computed = Counter(
        identity
        for replica, skipped in zip(stage.all, computed_before, strict=True)
        for _, identity in replica.answered()[skipped:]
    )
    kinds = Counter(outcome["kind"] for outcome in outcomes)
    why = Counter(outcome["why"] for outcome in outcomes if outcome["why"])
    return [
        {
            "requests": len(outcomes),
            "failed": kinds["failed"],
            "wrong": kinds["wrong"],
            "computed_twice": sum(count > 1 for count in computed.values()),
            "traffic_after_s": max(waits, default=None),
            "slowest_s": max(outcome["ended"] - outcome["began"] for outcome in outcomes),
            "images_s": kinds["right"] / (outcomes[-1]["ended"] - min(outcome["began"] for outcome in outcomes)),
            "first_error": why.most_common(1)[0][0] if why else "",
        }
    ]


@contextmanager
def load(stage: Replicas, way: Way, *, in_flight: int = IN_FLIGHT, client: str = M2F) -> Iterator[list[dict[str, Any]]]:
    """Keep requests in flight during the `with` block; afterwards the list has their outcomes, as they ended."""
    out = stage.folder / "outcomes.jsonl"
    options = ["--client", client, "--in-flight", str(in_flight), "--out", str(out)]
    options += ["--ca", str(stage.folder / "tls.crt")] if way.tls else []
    command = stage.hosts.seen_by([sys.executable, "-m", "benchmarks.rolling.load", way.url, *options])
    root = Path(__file__).resolve().parents[2]
    outcomes: list[dict[str, Any]] = []
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                raise RuntimeError(f"the load on {way.url} did not begin")
            yield outcomes
        finally:
            process.stdin.close()
            process.wait(60)
    outcomes += map(json.loads, out.read_text().splitlines())


def first_traffic(answered: Any, ready_at: float) -> float:
    """Wait until a replica has answered a request since it was ready, and return after how many seconds it did.

    The time of the engine belongs to it.
    """
    deadline = time.monotonic() + NEW_S
    while time.monotonic() < deadline:
        later = [when for when, _ in answered() if when > ready_at]
        if later:
            return later[0] - ready_at
        time.sleep(0.05)
    return NEW_S


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return what failed on each way, how soon a new replica had traffic, and all sums."""
    deployed = [row for row in rows if row["settings"] == "as deployed"]
    bare = [row | {"event": f"{row['event']} {row['settings']}"} for row in rows if row["settings"] != "as deployed"]
    new = [row for row in deployed if row["traffic_after_s"] is not None]
    return [
        _by_event("lost", deployed + bare, _failed, "Requests that failed, of all requests of all runs:"),
        _by_event("new", new, _longest_wait, "Seconds until a replica that is ready had its first answer, longest:"),
        _sums(rows),
    ]


def _by_event(name: str, rows: Sequence[Row], shown: Callable[[Sequence[Row]], Any], caption: str) -> Table:
    """Return a table with a line for each way and a column for each event."""
    ways = list(dict.fromkeys((row["path"], row["client"], row["protocol"]) for row in rows))
    events = list(dict.fromkeys(row["event"] for row in rows))
    lines = []
    for way in ways:
        places = [
            [row for row in rows if (row["path"], row["client"], row["protocol"], row["event"]) == (*way, e)]
            for e in events
        ]
        lines.append([*way, *(shown(place) if place else None for place in places)])
    return Table(name, ["way to the replicas", "client", "protocol", *events], lines, caption)


def _failed(rows: Sequence[Row]) -> str:
    return f"{sum(row['failed'] for row in rows):,} of {sum(row['requests'] for row in rows):,}"


def _longest_wait(rows: Sequence[Row]) -> float | str:
    longest: float = max(row["traffic_after_s"] for row in rows)
    return longest if longest < NEW_S else f"none within {NEW_S:.0f}"


def _sums(rows: Sequence[Row]) -> Table:
    keys = ("settings", "replicas", "protocol", "path", "client", "event")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    counts = ("requests", "failed", "wrong", "computed_twice")
    lines = [
        [
            *key,
            len(group),
            *(sum(row[name] for row in group) for name in counts),
            max(row["slowest_s"] for row in group),
        ]
        for key, group in groups.items()
    ]
    columns = [*keys, "runs", *(name.replace("_", " ") for name in counts), "slowest answer, s"]
    return Table("sums", columns, lines, "Sums of the runs:")
