"""The knee: how many images a second the pipeline carries around an engine that sleeps as long as a GPU would compute.

Client and server share this machine's cores. So two answers are given: what was carried here, with what was full first;
and what one instance of each step carries if it has a core of its own, from the time of a single request.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from m2f.contract import PUBLIC_MODEL, model_name
from m2f.ensembles import Ensemble
from m2f_client import Client
from m2f_server import Server, serve

from .frame import Part, Row, Table
from .frame.load import closed_loop
from .frame.usage import usage
from .perf_analyzer import Steps
from .serving import find_ensembles, read, write
from .sleeping_engine import Work, embedded, production, sleeping_repository

SIZES = {"256 x 256": embedded, "800 x 1344": production}
SLEEPS_MS = (2, 5, 10, 20)
STEPS = ("preprocess", "engine", "postprocess")
SHIPPED = (2, 1, 1)  # instances of the steps
INSTANCES = (SHIPPED, (2, 2, 1), (4, 3, 2))
LOADED = 16  # requests in flight
FULL = 0.85  # of the time or of the cores
HEADROOM = 1.3  # an instance that is busy all the time makes requests wait


@dataclass(frozen=True)
class Stage:
    """A running server.

    Attributes:
        server: the server.
        work: the picture and its answer.
        ensemble: the public model.
    """

    server: Server
    work: Work
    ensemble: Ensemble


def part(*, quick: bool) -> Part:
    """Return a cell for each size, engine time and number of instances."""
    sizes, sleeps, instances = (["256 x 256"], [5], [SHIPPED]) if quick else (list(SIZES), SLEEPS_MS, INSTANCES)
    names = ("size", "gpu_ms", *STEPS, "in_flight")
    settings = [(size, ms, *counts, LOADED) for size, ms, counts in itertools.product(sizes, sleeps, instances)]
    settings += [(size, sleeps[-1], *SHIPPED, 1) for size in sizes]
    return Part(
        name="knee",
        title="The knee: what the pipeline carries around a fast engine",
        about=(
            f"A sleeping engine answers with the logits of a drawn scene; {LOADED} requests in flight. Client and "
            "server share these cores."
        ),
        cells=[dict(zip(names, setting, strict=True)) for setting in settings],
        shared=names[:-1],
        stage=served,
        measure=measured,
        tables=tables,
        draw=draw,
    )


@contextmanager
def served(*, size: str, gpu_ms: float, **counts: int) -> Iterator[Stage]:
    """Serve a sleeping engine between steps of some instances, for the length of the `with` block."""
    work = SIZES[size]()
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with sleeping_repository(work, milliseconds=gpu_ms) as repository:
        for step, count in counts.items():
            path = repository / model_name(PUBLIC_MODEL, step) / "config.pbtxt"
            config = read(path)
            config.instance_group[0].count = count
            write(config, path)
        with serve(model_repository=repository, **ports) as server:
            yield Stage(server, work, find_ensembles(repository, PUBLIC_MODEL)["image"])


def measured(stage: Stage, *, gpu_ms: float, in_flight: int, **cell: Any) -> list[Row]:
    """Send the picture again and again, and see who was busy.

    Raises:
        ValueError: the pipeline gives no instances.
    """
    sent = itertools.count()
    with Client(stage.server.grpc_url) as client:
        if not len(client.predict(stage.work.picture)):
            raise ValueError("the drawn scene has instances, and the answer none")
        steps, before, own = Steps(stage.server.http_url, stage.ensemble), usage(stage.server.pid), time.process_time()
        started = time.perf_counter()

        def send(_: int) -> None:
            client.predict(stage.work.picture)
            next(sent)

        load = closed_loop(send, in_flight=in_flight, seconds=1.5)
        seconds, images = time.perf_counter() - started, next(sent)
        own = time.process_time() - own
    after, spent, busy_s = usage(stage.server.pid), steps.milliseconds(), steps.busy_s()
    cpu_s = {name.removeprefix(f"{PUBLIC_MODEL}_"): found.cpu_s - before[name].cpu_s for name, found in after.items()}
    # preprocess waits on purpose while the engine's queue is full, so only its processor time is work
    busy_s[model_name(PUBLIC_MODEL, "preprocess")] = cpu_s["preprocess"]
    row: Row = {**load, "of_engine": load["images_s"] * gpu_ms / 1e3}
    row["cores_used"] = (sum(cpu_s.values()) + own) / seconds
    row |= {f"{step}_ms": spent[f"{step}_ms"] for step in STEPS}
    row |= {f"{step}_busy": busy_s[model_name(PUBLIC_MODEL, step)] / seconds / cell[step] for step in STEPS}
    row["first_full"] = first_full(row)
    cpu_s["client"] = own
    return [{**row, **{f"{name}_cpu_ms": 1e3 * cpu_s.get(name, 0.0) / images for name in PROCESSES}}]


CARRIED = {
    "size": "size",
    "gpu_ms": "GPU, ms",
    "preprocess": "preprocess",
    "engine": "engine",
    "postprocess": "postprocess",
    "images_s": "images/s",
    "of_engine": "of the GPU's rate",
    "p99_ms": "p99, ms",
    "cores_used": "cores used",
    "engine_busy": "engine busy",
    "postprocess_busy": "postprocess busy",
    "first_full": "full first",
}
PROCESSES = ("tritonserver", "preprocess", "engine", "postprocess", "client")


def first_full(row: Row) -> str:
    """Return what limits the rate: the GPU, the cores, or the busiest step; empty if nothing is full."""
    step = max(STEPS, key=lambda step: row[f"{step}_busy"])
    limits = {
        "GPU": row["of_engine"],
        "all cores": row["cores_used"] / len(os.sched_getaffinity(0)),
        step: row[f"{step}_busy"],
    }
    return next((name for name, share in limits.items() if share >= FULL), "")


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return what was carried, what an image costs, and the instances that an engine needs."""
    loaded = [row for row in rows if row["in_flight"] == LOADED]
    alone = {row["size"]: row for row in rows if row["in_flight"] == 1}
    found = [
        Table("carried", list(CARRIED.values()), [[row[name] for name in CARRIED] for row in loaded],
              f"Carried on these cores, {LOADED} requests in flight, by instances of the steps:"),
        Table(
            "cost",
            ["size", *PROCESSES],
            [[size, *(row[f"{name}_cpu_ms"] for name in PROCESSES)] for size, row in alone.items()],
            "Processor milliseconds of an image by process, one request in flight:",
        ),
        Table("instances", ["size", "GPU, ms", "images/s", *STEPS, "cores"],
              [line for size, row in alone.items() for line in needed(size, row)],
              f"What a GPU of this speed needs, from the times of single requests, {HEADROOM - 1:.0%} of headroom:"),
    ]  # fmt: skip
    return [table for table in found if table.lines]


def needed(size: str, alone: Row) -> Iterator[list[Any]]:
    """Yield a line for each engine time: rate, instances of the steps, and cores beside the client's.

    The engine's own copies take time of its instance, in which the GPU has nothing to do.
    """
    cpu_ms = sum(alone[f"{name}_cpu_ms"] for name in PROCESSES if name != "client")
    copies_ms = alone["engine_ms"] - alone["gpu_ms"]
    for gpu_ms in SLEEPS_MS:
        instance_ms = {step: alone[f"{step}_ms"] for step in STEPS} | {"engine": gpu_ms + copies_ms}
        instances = [math.ceil(HEADROOM * instance_ms[step] / gpu_ms) for step in STEPS]
        yield [size, gpu_ms, 1000 // gpu_ms, *instances, math.ceil(HEADROOM * cpu_ms / gpu_ms)]


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the rate over the engine's, for each size and number of instances."""
    loaded = [row for row in rows if row["in_flight"] == LOADED]
    sizes = list(dict.fromkeys(row["size"] for row in loaded))
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        points: dict[str, list[tuple[float, float]]] = {}
        for row in loaded:
            if row["size"] == size:
                label = ", ".join(f"{row[step]} {step}" for step in STEPS)
                points.setdefault(label, []).append((1e3 / row["gpu_ms"], row["images_s"]))
        for label, line in points.items():
            axes.plot(*zip(*sorted(line), strict=True), "o-", label=label)
        most = max(1e3 / row["gpu_ms"] for row in loaded)
        axes.plot([0, most], [0, most], "k--", label="the GPU's own rate")
        axes.set(title=size, xlabel="images a second of the GPU", ylim=(0, None))
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("images a second carried")
