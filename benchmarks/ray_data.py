"""The cost of Ray Data: examples/ray/segment.py against `m2f predict`, on one machine and one running server.

    make .venv/.ray
    .venv/ray/bin/python -m benchmarks.ray_data photos --url grpc://127.0.0.1:8001

Each program does a tenth of the folder, then all of it. The difference of the two runs is the cost of the images, and
the rest of the short run is the start. Processor time is that of all processes of the program, those of Ray included.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import click
import psutil

from m2f_cli.options import url_option

RAY = Path(__file__).parents[1] / "examples/ray/segment.py"
IN_FLIGHT = 16
SAMPLE_S = 0.1


class Cost(NamedTuple):
    """Seconds that a run took, of the clock and of the processor."""

    wall: float
    cpu: float


def run(command: list[str]) -> Cost:
    """Run a command to its end, and sum the processor time of its processes."""
    spent: dict[psutil.Process, float] = {}
    started = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as process,
    ):
        root, ended = psutil.Process(process.pid), threading.Event()
        threading.Thread(target=lambda: (process.wait(), ended.set()), daemon=True).start()
        while not ended.wait(SAMPLE_S):
            _sample(root, spent)
        if process.returncode:
            said.seek(0)
            raise click.ClickException(f"exit code {process.returncode}: {' '.join(command)}\n{said.read()[-2000:]}")
    return Cost(time.monotonic() - started, sum(spent.values()))


def _sample(root: psutil.Process, spent: dict[psutil.Process, float]) -> None:
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in processes:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent[one] = times.user + times.system


def commands(images: Path, out: Path, url: str) -> dict[str, list[str]]:
    """Return both programs' command lines, with as many images in flight."""
    predict = [str(Path(sys.executable).parent / "m2f"), "predict", str(images), "--jsonl", str(out / "journal.jsonl")]
    ray = [sys.executable, str(RAY), str(images), "--out", str(out / "parquet"), "--in-flight", str(IN_FLIGHT // 2)]
    return {
        "m2f predict": [*predict, "--concurrency", str(IN_FLIGHT), "--url", url],
        "examples/ray": [*ray, "--actors", "2", "--url", url],
    }


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@url_option
def main(folder: Path, url: str) -> None:
    """Print what the images in FOLDER and the start cost each program, as Markdown."""
    os.environ.pop("RAY_ADDRESS", None)  # a cluster of its own: all processes are this program's
    files = sorted(path for path in folder.iterdir() if path.is_file())
    print("| program | start, s | start, CPU s | CPU ms an image | images/s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="m2f_benchmark_") as scratch:
        part = Path(scratch) / "part"
        part.mkdir()
        for path in files[: len(files) // 10]:
            shutil.copy(path, part)
        few, more = len(files) // 10, len(files) - len(files) // 10
        costs = {}
        for number, images in enumerate((part, folder)):
            out = Path(scratch) / str(number)
            out.mkdir()
            costs[number] = {name: run(command) for name, command in commands(images, out, url).items()}
        for name, short in costs[0].items():
            image = Cost(*((b - a) / more for a, b in zip(short, costs[1][name], strict=True)))
            start = Cost(*(a - each * few for a, each in zip(short, image, strict=True)))
            print(f"| {name} | {start.wall:.1f} | {start.cpu:.1f} | {1000 * image.cpu:.1f} | {1 / image.wall:.0f} |")


if __name__ == "__main__":
    main()
