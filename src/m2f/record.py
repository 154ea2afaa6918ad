"""What the work for a request consisted of: seconds by phase, images by format, instances.

The core says it where it happens; whoever wants it opens `recorded()` around the work. Where nobody did, saying it
costs under a microsecond.
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
    """The work of one request, all its images together.

    Attributes:
        seconds: phase to the time it took: `wait` (until the queues behind have room), `decode` (file to pixels),
            `resize` (to the engine's input), `select` (class scores to candidates), `masks` (logits to masks, their
            scores, boxes and RLE).
        images: format (`JPEG`, `PNG`, `WEBP`) to how many images were decoded.
        instances: how many were found in each image.
    """

    seconds: dict[Phase, float] = field(default_factory=dict)
    images: Counter[str] = field(default_factory=Counter)
    instances: list[int] = field(default_factory=list)


_current: ContextVar[Record | None] = ContextVar("record", default=None)


@contextmanager
def recorded() -> Iterator[Record]:
    """Collect what the work in the block consists of, in this thread."""
    record = Record()
    token = _current.set(record)
    try:
        yield record
    finally:
        _current.reset(token)


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Add the time of the block to a phase, also where it raises."""
    started = time.perf_counter()
    try:
        yield
    finally:
        if record := _current.get():
            record.seconds[name] = record.seconds.get(name, 0.0) + time.perf_counter() - started


def image_decoded(image_format: str) -> None:
    """Count an image of a format."""
    if record := _current.get():
        record.images[image_format] += 1


def instances_found(counts: Iterable[int]) -> None:
    """Note how many instances each image has."""
    if record := _current.get():
        record.instances += counts
