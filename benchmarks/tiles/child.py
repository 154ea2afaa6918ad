"""What the ways to cut a picture share: arguments, time and memory of one call, and its answer as JSON.

Each way is a module of its own, run by the interpreter of its environment:

    python -m benchmarks.tiles.WAY grpc://HOST:PORT PICTURE.tif ANSWER.json '{"tile": 256, "overlap": 0.25, ...}'
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .scores import Found


@dataclass(frozen=True)
class Way:
    """A way that is ready to be timed.

    Attributes:
        tiles: x1 y1 x2 y2 of each tile.
        call: reads the picture, cuts it and puts the answers together.
        found: the instances in what `call` returned.
    """

    tiles: Iterable[Sequence[int]]
    call: Callable[[], Any]
    found: Callable[[Any], Iterable[Found]]


def main(prepare: Callable[..., Way]) -> None:
    """Cut a picture, time the call, and write what was found.

    Args:
        prepare: `prepare(url, picture, **settings)` connects to the server and warms up.
    """
    url, picture, answer, settings = sys.argv[1:]
    way = prepare(url, picture, **json.loads(settings))
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest resident size so far
    cpu, started = _processor_time(), time.perf_counter()
    result = way.call()
    figures = {
        "seconds": time.perf_counter() - started,
        "cpu_s": _processor_time() - cpu,
        "before_mb": before,
        "peak_mb": _memory("VmHWM"),
    }
    tiles = [[int(edge) for edge in tile] for tile in way.tiles]
    Path(answer).write_text(json.dumps({"figures": figures, "tiles": tiles, "found": list(way.found(result))}))


def _memory(name: str) -> float:
    """Return a line of /proc/self/status in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
