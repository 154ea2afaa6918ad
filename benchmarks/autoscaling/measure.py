"""Two servers under a load that rises and falls, a real Prometheus beside them, and what an autoscaler would ask for.

Each server's engine sleeps 200 ms an image, so it carries 5 images a second. The number of servers stays two: shown is
what the autoscaler would have asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from m2f.contract import PUBLIC_MODEL, STRUCTURED_OUTPUTS, model_name

from ..frame import Part, Row, Table, UnavailableError
from ..sleeping_engine import Work, embedded, sleeping_repository
from .prometheus import Prometheus, find_program, prometheus
from .scaler import TARGETS, wanted

REPLICAS = 2
GPU_MS = 200  # so slow that the servers are full long before the processor is
CARRIED = REPLICAS * 1e3 / GPU_MS  # images a second
SHARES = (0.2, 0.5, 0.9, 1.4, 0.9, 0.5, 0.2)  # of what the servers carry
STEP_S = 75  # the rules look back a minute
INTERVAL_S = 15  # of the rules
SEED = 7

_M2F = Path(sys.executable).with_name("m2f")
_OF = f'{{model="{model_name(PUBLIC_MODEL, "engine")}"}}'
QUESTIONS = {
    "busy": f"m2f:step_busy:rate1m{_OF}",
    "queue_s": f'm2f:queue_seconds:rate1m{{name="{PUBLIC_MODEL}"}}',
    "turned_away_s": f'm2f:turned_away:rate1m{{name="{PUBLIC_MODEL}"}}',
    "worked": f"rate(nv_inference_count{_OF}[1m]) * {GPU_MS / 1e3}",  # the truth: each image takes the same time
    "counter": f"rate(nv_inference_compute_infer_duration_us{_OF}[1m]) / 1e6",
    "batch": f"rate(nv_inference_count{_OF}[1m]) / rate(nv_inference_exec_count{_OF}[1m])",
}
SUMMED = ("turned_away_s",)  # over the servers; of the others the average is shown


@dataclass(frozen=True)
class Stage:
    """Running servers under a watch.

    Attributes:
        urls: `host:port` of gRPC of each server.
        prometheus: what scrapes them.
        picture: encoded image that they answer.
    """

    urls: Sequence[str]
    prometheus: Prometheus
    picture: bytes


SHOWN = {
    "offered_s": "images/s offered",
    "worked": "truth",
    "busy": "m2f:step_busy",
    "counter": "compute counter",
    "batch": "images a batch",
    "queue_s": "m2f:queue_seconds",
    "turned_away_s": "m2f:turned_away",
    "asked_busy": "replicas for busy",
    "asked_queue_s": "replicas for queue",
}


def part(*, quick: bool) -> Part:
    """Return one cell: a load that rises and falls."""
    shares, step_s = (SHARES[2:5], 20) if quick else (SHARES, STEP_S)
    return Part(
        name="autoscaling",
        title="Autoscaling: the rules' figures, and what an autoscaler would ask for",
        about=(
            f"{REPLICAS} servers, whose engine sleeps {GPU_MS} ms an image, carry {CARRIED:.0f} images a second. "
            "A Prometheus applies `deploy/prometheus/m2f.rules.yml`."
        ),
        cells=[{"shares": list(shares), "step_s": step_s}],
        measure=measured,
        stage=watched,
        limit_s=60 + len(shares) * step_s * 1.5,
        tables=tables,
        draw=draw,
    )


@contextmanager
def watched() -> Iterator[Stage]:
    """Serve sleeping engines and scrape them, for the length of the `with` block."""
    if find_program("prometheus") is None:
        raise UnavailableError("there is no prometheus: make .venv/.prometheus")
    work = embedded()
    with ExitStack() as stack:
        servers = [stack.enter_context(supervised(work)) for _ in range(REPLICAS)]
        targets = [urlsplit(server[name]).netloc for server in servers for name in ("metrics", "health")]
        urls = [server["grpc"] for server in servers]
        yield Stage(urls, stack.enter_context(prometheus(targets)), work.picture)


@contextmanager
def supervised(work: Work) -> Iterator[dict[str, str]]:
    """Run `m2f serve` on a sleeping engine, and yield its addresses."""
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health")]
    with sleeping_repository(work, milliseconds=GPU_MS) as repository:
        command = [str(_M2F), "serve", "--json", f"--model-repository={repository}", *ports]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                if not (line := process.stdout.readline()):
                    raise ValueError(f"m2f serve did not start: {process.communicate()[1][-500:]}")
                yield json.loads(line)
            finally:
                process.terminate()


def measured(stage: Stage, *, shares: Sequence[float], step_s: float) -> list[Row]:
    """Send the load, and return a row for each time at which the rules were evaluated."""
    started = time.time()
    sent = asyncio.run(offered(stage, shares, step_s))
    time.sleep(INTERVAL_S)
    span = {"start": started + INTERVAL_S, "end": time.time(), "step_s": INTERVAL_S}
    found = {name: averages(stage.prometheus.ask(question, **span)) for name, question in QUESTIONS.items()}
    rows = []
    for at in sorted(found["busy"]):
        figures = {name: values.get(at, 0.0) * (REPLICAS if name in SUMMED else 1) for name, values in found.items()}
        step = min(int((at - started) / step_s), len(shares) - 1)
        asked = {f"asked_{name}": wanted(figures[name], target, replicas=REPLICAS) for name, target in TARGETS.items()}
        rows.append(
            {
                "at_s": at - started,
                "offered_s": shares[step] * CARRIED,
                **figures,
                **asked,
                "asked": max(asked.values()),
            }
        )
    if not sent["answered"] or max(row["busy"] for row in rows) == 0:
        raise ValueError(f"the servers did nothing: {dict(sent)}")
    return [{**row, **{f"requests_{name}": sent[name] for name in ("answered", "refused", "failed")}} for row in rows]


def averages(series: dict[str, list[tuple[float, float]]]) -> dict[float, float]:
    """Return the average over the servers by time, for times at which all servers have a value."""
    values: dict[float, list[float]] = {}
    for points in series.values():
        for at, value in points:
            values.setdefault(at, []).append(value)
    return {at: sum(found) / REPLICAS for at, found in values.items() if len(found) == REPLICAS}


async def offered(stage: Stage, shares: Sequence[float], step_s: float) -> Counter[str]:
    """Send requests at random times to the servers in turn, whether they answer or not, and count the ends.

    A request is sent once, and none is given up: hundreds of cancelled calls end Triton 2.51.
    """
    ends: Counter[str] = Counter()
    draws = random.Random(SEED)  # noqa: S311 (times of requests)
    image = InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[stage.picture]], dtype=np.object_))
    outputs = [InferRequestedOutput(name) for name in STRUCTURED_OUTPUTS]
    async with AsyncExitStack() as stack:
        clients = itertools.cycle([await stack.enter_async_context(InferenceServerClient(url)) for url in stage.urls])

        async def send() -> None:
            try:
                await next(clients).infer(PUBLIC_MODEL, [image], outputs=outputs)
                ends["answered"] += 1
            except InferenceServerException as error:  # of a full queue, or of a server that broke
                ends["refused" if error.status() == "StatusCode.UNAVAILABLE" else "failed"] += 1

        in_flight: list[asyncio.Task[None]] = []
        due = time.monotonic()
        for share in shares:
            end = due + step_s
            while due < end:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                in_flight.append(asyncio.create_task(send()))
                due += draws.expovariate(share * CARRIED)
        await asyncio.gather(*in_flight)
    return ends


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return the last row of each level of the load: by then the rules have seen only that level."""
    last = [
        row for row, after in itertools.pairwise([*rows, {"offered_s": None}]) if row["offered_s"] != after["offered_s"]
    ]
    lines = [[row[name] for name in SHOWN] for row in last]
    return [Table("levels", list(SHOWN.values()), lines, "At the end of each level, average of the two servers:")]


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the load and what was asked for, the busy share, and the queue, over time."""
    at = [row["at_s"] for row in rows]
    load, asked, busy, queue = figure.subplots(2, 2, sharex=True).flat
    load.plot(at, [row["offered_s"] for row in rows], "k--", label="images/s offered")
    load.axhline(CARRIED, color="grey", lw=0.8, label="carried by the two servers")
    for name, color in (("busy", "tab:blue"), ("queue_s", "tab:orange")):
        asked.step(
            at, [row[f"asked_{name}"] for row in rows], color, where="post", label=f"replicas asked for by {name}"
        )
    asked.set_ylim(0, 12)
    busy.plot(at, [row["counter"] for row in rows], "tab:red", label="Triton's compute counter")
    busy.plot(at, [row["busy"] for row in rows], "tab:blue", label="m2f:step_busy")
    busy.plot(at, [row["worked"] for row in rows], "k:", label="truth")
    busy.axhline(TARGETS["busy"], color="grey", lw=0.8, label="target")
    busy.set_ylim(0, 3)
    queue.plot(at, [row["queue_s"] for row in rows], "tab:orange", label="m2f:queue_seconds")
    queue.plot(at, [row["turned_away_s"] for row in rows], "tab:red", label="m2f:turned_away, a second")
    queue.axhline(TARGETS["queue_s"], color="grey", lw=0.8, label="target of the queue")
    for axes in (load, asked, busy, queue):
        axes.legend(fontsize="small", loc="upper left")
    load.set_ylim(0, 20)
    for axes in (busy, queue):
        axes.set_xlabel("seconds")
