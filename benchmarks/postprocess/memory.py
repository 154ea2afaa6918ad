"""Peak extra memory of one call, in a process of its own: `python -m benchmarks.postprocess.memory WAY OBJECTS`."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from m2f.kernels import KERNELS

from . import ours
from .scenes import ROOT, Case, synthetic

OUTPUT = (800, 1333)
MASK_BYTES = OUTPUT[0] * OUTPUT[1]
MODULE = "benchmarks.postprocess.memory"


@dataclass(frozen=True)
class Row:
    """Memory of one way.

    Attributes:
        way: `mmdet` or a kernel of ours.
        instances: in the scene.
        peak_bytes: most that it held beyond what there was before; its answer included.
        masks: the same, in dense masks of one byte a pixel.
    """

    way: str
    instances: int
    peak_bytes: int
    masks: float


def measure(ways: list[tuple[str, int]]) -> list[Row]:
    """Measure pairs of way and number of objects, each in a fresh process."""
    rows = []
    for way, objects in ways:
        command = [sys.executable, "-m", MODULE, way, str(objects)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        peak = int(done.stdout.split()[-1])
        rows.append(Row(way, objects, peak, peak / MASK_BYTES))
    return rows


def peak_bytes(function: Callable[[], object]) -> int:
    """Return by how much the process grows while the function runs.

    The larger of what Linux counts (pages, whoever allocates) and what Python's allocators count (numpy's arrays too,
    but not a native kernel's own): the first misses memory that malloc held back, the second what is not Python's.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    function()
    pages = _status("VmHWM") - before
    tracemalloc.start()
    function()
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return max(pages, python)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _function(way: str) -> Callable[[Case], object]:
    for kernel in KERNELS:
        if way == kernel.name:
            return partial(ours.run, kernel=kernel)
    from .peers import PEERS  # noqa: PLC0415 (torch would be in the way where it is not what is measured)

    return PEERS[way]


def main() -> None:
    """Print the peak of one way on one scene."""
    way, objects = sys.argv[1], int(sys.argv[2])
    function, case = _function(way), synthetic(objects, OUTPUT)
    function(replace(case, ori_shape=(40, 60)))  # loads whatever is loaded once
    print(peak_bytes(lambda: function(case)))


if __name__ == "__main__":
    main()
