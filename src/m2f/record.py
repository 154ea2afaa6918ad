"""Record the work for a request: seconds by phase, images by format, instances.

The core reports its work where the work happens. A caller that wants the report opens `recorded()` around the work.
Without it, a report costs less than a microsecond.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, get_args

Phase = Literal["wait", "decode", "resize", "select", "masks"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass
class Record:
    """The work of one request, all images together.

    Attributes:
        seconds: time by phase: `wait` (until the queues behind preprocessing have room), `decode` (file to pixels),
            `resize` (pixels to the engine's input), `select` (class scores to candidates), `masks` (logits to masks
            and their scores, boxes and RLE).
        images: number of decoded images by format (`JPEG`, `PNG`, `WEBP`).
        instances: number of instances of each image.
    """

    seconds: dict[Phase, float] = field(default_factory=dict)
    images: Counter[str] = field(default_factory=Counter)
    instances: list[int] = field(default_factory=list)


_current: ContextVar[Record | None] = ContextVar("record", default=None)


@contextmanager
def recorded() -> Iterator[Record]:
    """Record the work of the block, in this thread."""
    record = Record()
    token = _current.set(record)
    try:
        yield record
    finally:
        _current.reset(token)


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Add the time of the block to a phase, even if the block raises."""
    started = time.perf_counter()
    try:
        yield
    finally:
        if record := _current.get():
            record.seconds[name] = record.seconds.get(name, 0.0) + time.perf_counter() - started


def image_decoded(image_format: str) -> None:
    """Count a decoded image."""
    if record := _current.get():
        record.images[image_format] += 1


def instances_found(counts: Iterable[int]) -> None:
    """Add the number of instances of each image."""
    if record := _current.get():
        record.instances += counts
