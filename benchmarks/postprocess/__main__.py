"""Post-processing against the ways others do it: time, floor, bytes, memory, growth, and the step inside Triton.

    python -m benchmarks.postprocess [--rounds 3] [--results benchmarks/results]

One thread for all. Every way must find the same instances before it is timed.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # read at import

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch

from m2f.kernels import BEST, KERNELS, NUMPY

from ..frame import machine
from . import growth, memory, report, served, targets
from .compare import MMDET, Row, compare
from .graphs import embedded, resnet50
from .scenes import OUTPUTS, ROOT, Case, synthetic

HEADLINE = (800, 1333)
ALL = ("mmdet", "detectron2", "huggingface", "prune + cv2")


@dataclass(frozen=True)
class Fact:
    """A line of the environment."""

    name: str
    value: str


def cases() -> Iterator[tuple[Case, tuple[str, ...]]]:
    """Yield each case with the peers that run on it; those that take seconds do not run on all."""
    for output in OUTPUTS:
        yield synthetic(15, output), (*ALL, "mmdet, kept encoded") if output == HEADLINE else ALL
        for objects in (60, 100):
            yield synthetic(objects, output), ("mmdet", "prune + cv2")
    for output in ((480, 640), HEADLINE):
        yield synthetic(15, output, threshold=0), ("mmdet", "prune + cv2")
    yield synthetic(15, HEADLINE, side_scale=1.4), ("mmdet", "prune + cv2")
    for image in ("scene_1.jpg", "coins.png"):
        yield embedded(image), ALL
    yield resnet50("coins.png"), ("mmdet", "prune + cv2")


def run(rounds: int, results: Path) -> list[targets.Target]:
    """Measure all, print it and write it down."""
    results.mkdir(parents=True, exist_ok=True)
    facts = {**machine.describe(), "threads": "1"}
    print(*(f"{name}: {value}" for name, value in facts.items()), sep="\n", flush=True)
    rows: list[Row] = []
    for case, peers in cases():
        rows += compare(case, peers, rounds=rounds)
        print(report.cases_table([row for row in rows if row.case == case.name]), flush=True)
    memory_rows = memory.measure([(MMDET, 15), *((kernel.name, n) for kernel in KERNELS for n in (15, 60, 100))])
    print(report.memory_table(memory_rows), flush=True)
    growth_rows = growth.measure(dict.fromkeys((BEST, NUMPY)), growth.scenes(), rounds=rounds)
    served_rows = served.measure([synthetic(n, HEADLINE) for n in (15, 100)], rounds=10 * rounds)
    print(report.served_table(served_rows), flush=True)
    judged = targets.judge(rows, memory_rows, growth_rows, served_rows)
    print(report.targets_table(judged))
    parts: dict[str, Sequence[Any]] = {
        "": rows,
        "_memory": memory_rows,
        "_growth": growth_rows,
        "_served": served_rows,
        "_targets": judged,
    }
    for name, part in {**parts, "_machine": [Fact(*item) for item in facts.items()]}.items():
        report.write_csv(part, results / f"postprocess{name}.csv")
    report.draw_ways(rows, results / "postprocess.png")
    report.draw_growth(growth_rows, results / "postprocess_growth.png")
    return judged


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.postprocess", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", help="folder of CSV and PNG")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # of mmdet, about torch
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    begin = time.perf_counter()
    run(arguments.rounds, arguments.results)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
