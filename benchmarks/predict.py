"""The rate of the command: `m2f predict` on a folder against perf_analyzer, from one server, as many in flight.

What `m2f predict` takes to start is not counted, since perf_analyzer does not count it either: its time runs from its
first line to its last. Every image must have worked, each exactly once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from m2f.contract import PUBLIC_MODEL

from .frame import Part, Row, Table, pivot
from .perf_analyzer import measure
from .serving import IMAGES, REPOSITORY, Stage, served

COMMAND, ANALYZER = "m2f predict", "perf_analyzer"
IN_FLIGHT = 4


def part(*, quick: bool) -> Part:
    """Return the two programs in turn."""
    rounds, images, window_s = (1, 100, 0.7) if quick else (3, 400, 3.0)
    return Part(
        name="predict",
        title="The rate of the command",
        about=f"`m2f predict` on a folder, and perf_analyzer on the same pictures; over gRPC, {IN_FLIGHT} in flight.",
        cells=[{"round": number, "program": program} for number in range(rounds) for program in (ANALYZER, COMMAND)],
        stage=stage,
        measure=partial(measured, images=images, window_s=window_s),
        tables=tables,
    )


@contextmanager
def stage() -> Iterator[Stage]:
    """Serve the structured outputs."""
    with served(REPOSITORY, PUBLIC_MODEL, outputs="structured", batching="on") as found:
        yield found


def measured(stage: Stage, *, program: str, images: int, window_s: float, **_: Any) -> list[dict[str, float]]:
    """Return images a second of one program."""
    if program == ANALYZER:
        row = measure(stage.target, PUBLIC_MODEL, inputs=stage.inputs["image"], in_flight=IN_FLIGHT, window_s=window_s)
        return [{"images_s": row["images_s"]}]
    with tempfile.TemporaryDirectory(prefix="m2f_benchmark_") as folder:
        return [{"images_s": predict(copies(Path(folder), images), stage.target.grpc_url)}]


def copies(folder: Path, count: int) -> Path:
    """Fill a folder with the example scenes, over and over."""
    for number in range(count):
        scene = IMAGES[number % len(IMAGES)]
        shutil.copy(scene, folder / f"{number:05d}{scene.suffix}")
    return folder


def predict(images: Path, url: str) -> float:
    """Return the images a second of `m2f predict` on a folder, from its first line on.

    Raises:
        ValueError: an image did not work, or is missing or there twice.
    """
    command = [Path(sys.prefix) / "bin/m2f", "predict", images, "--url", f"grpc://{url}"]
    command += ["--concurrency", str(IN_FLIGHT), "--jsonl", "-"]
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        started = time.monotonic()
        lines += process.stdout
        seconds = time.monotonic() - started
    done = [json.loads(line) for line in lines if line]
    names = sorted(line["file_name"] for line in done if "instances" in line)
    if process.returncode or names != sorted(str(path) for path in images.iterdir()):
        raise ValueError(f"m2f predict did {len(names)} images well, exit code {process.returncode}")
    return (len(done) - 1) / seconds


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return the rate of each program by round."""
    return [pivot(rows, name="rate", lines="program", columns="round", value="images_s", caption="Images a second:")]
