"""`m2f predict` on many images against perf_analyzer: images a second, from one server, as many in flight.

    python -m benchmarks.predict [--images 500] [--concurrency 4] [--rounds 3]

The two take turns. What `m2f predict` takes to start is not counted, since perf_analyzer does not count it either: its
time runs from its first line to its last. Every image must have worked, each exactly once, or there is no figure.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.perf_analyzer import ROOT, SUFFIXES, BenchmarkError, measure, structured_repository, write_inputs
from m2f.contract import PUBLIC_MODEL
from m2f_server import serve

ANALYZER = Path(sys.prefix) / "perf_analyzer"


def main() -> None:
    """Measure in turns and print the ratio of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    table = Table("", "perf_analyzer, images/s", "m2f predict, images/s", "ratio", box=None)
    ratios = []
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        tempfile.TemporaryDirectory(prefix="m2f_benchmark_") as temporary,
        structured_repository(ROOT / "model_repository") as repository,
        serve(model_repository=repository, config_name="cpu", **ports) as server,
    ):
        urls = {"http": server.http_url, "grpc": server.grpc_url}
        folder = Path(temporary)
        inputs = folder / "inputs.json"
        write_inputs(PUBLIC_MODEL, images=pictures(), http_url=urls["http"], path=inputs)
        for number in range(1, options.rounds + 1):
            peer = measured(urls, inputs, options.concurrency)
            ours = predict(copies(folder / f"round_{number}", options.images), urls["grpc"], options.concurrency)
            ratios.append(ours / peer)
            table.add_row(f"round {number}", f"{peer:.1f}", f"{ours:.1f}", f"{ratios[-1]:.3f}")
    table.add_row("median", "", "", f"{statistics.median(ratios):.3f}")
    Console().print(table)


def pictures() -> list[Path]:
    """Return the example scenes."""
    return sorted(path for path in (ROOT / "examples/images").glob("scene*") if path.suffix in SUFFIXES)


def copies(folder: Path, count: int) -> Path:
    """Fill a folder with the example scenes, over and over."""
    folder.mkdir()
    scenes: Sequence[Path] = pictures()
    for number in range(count):
        scene = scenes[number % len(scenes)]
        shutil.copy(scene, folder / f"{number:05d}{scene.suffix}")
    return folder


def measured(urls: Mapping[str, str], inputs: Path, concurrency: int) -> float:
    """Return perf_analyzer's images a second, over gRPC."""
    row = measure(
        PUBLIC_MODEL, protocol="grpc", concurrency=concurrency, urls=urls, inputs=inputs, window_s=4, folder=ANALYZER
    )
    return row.images_per_second


def predict(images: Path, url: str, concurrency: int) -> float:
    """Return the images a second of `m2f predict` on a folder, from its first line on.

    Raises:
        BenchmarkError: an image did not work, or is missing or there twice.
    """
    command = [Path(sys.prefix) / "bin/m2f", "predict", images, "--url", f"grpc://{url}"]
    command += ["--concurrency", str(concurrency), "--jsonl", "-"]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        started = time.monotonic()
        lines += process.stdout
        seconds = time.monotonic() - started
    done = [json.loads(line) for line in lines]
    names = sorted(line["file_name"] for line in done if "instances" in line)
    if process.returncode or names != sorted(str(path) for path in images.iterdir()):
        raise BenchmarkError(f"m2f predict did {len(names)} images well, exit code {process.returncode}")
    return (len(done) - 1) / seconds


if __name__ == "__main__":
    main()
