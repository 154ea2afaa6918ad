"""Every way on one case: checked equal, then timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from m2f.batch import stack_instances
from m2f.kernels import KERNELS, NUMPY
from m2f.postprocess import Instances

from . import equality, ours
from .floor import Floor
from .peers import PEERS, Found
from .scenes import Case
from .timing import interleaved

MMDET, FLOOR = "mmdet", "floor"


@dataclass(frozen=True)
class Row:
    """One way on one case.

    Attributes:
        case, way: which.
        output: height x width.
        instances: found.
        masks: different queries among them.
        mean_area: pixels of a mask.
        median_ms: of all runs.
        cold_ms: of the first run of each turn, when the caches hold other data.
        runs: timed.
        ratio: how many times as long mmdetection takes; None where it does not run.
        over_floor: this time over the floor's.
        pixels: that differ from ours, by rounding only; None where it is not the same function.
        response_bytes: of the structured outputs with RLE.
        dense_bytes: of its masks at a byte a pixel.
    """

    case: str
    way: str
    output: str
    instances: int
    masks: int
    mean_area: int
    median_ms: float
    cold_ms: float
    runs: int
    ratio: float | None
    over_floor: float
    pixels: int | None
    response_bytes: int
    dense_bytes: int


def compare(case: Case, peers: Sequence[str], *, rounds: int) -> list[Row]:
    """Check the peers and every kernel of ours on a case, then time them in turn.

    Raises:
        UnequalError: a way does not find the same instances.
    """
    want = ours.run(case, NUMPY)  # what every way is held against
    ways: dict[str, Callable[[], object]] = {name: partial(PEERS[name], case) for name in peers}
    pixels = {name: check(name, PEERS[name](case), want, case) for name in peers}
    for kernel in KERNELS:
        name = f"m2f {kernel}"
        ways[name] = partial(ours.run, case, kernel)
        pixels[name] = equality.differing_pixels(as_found(ours.run(case, kernel)), want, case)
    ways[FLOOR], pixels[FLOOR] = Floor(case, want), None
    times = interleaved(ways, rounds=rounds)
    mmdet = times[MMDET].median_ms if MMDET in times else None
    facts = _facts(want)
    return [
        Row(
            case=case.name,
            way=name,
            output=f"{case.ori_shape[0]}x{case.ori_shape[1]}",
            median_ms=times[name].median_ms,
            cold_ms=times[name].cold_ms,
            runs=len(times[name].all),
            ratio=mmdet / times[name].median_ms if mmdet else None,
            over_floor=times[name].median_ms / times[FLOOR].median_ms,
            pixels=pixels[name],
            **facts,
        )
        for name in ways
    ]


def check(name: str, found: Found, want: Instances, case: Case) -> int | None:
    """Hold a peer's answer against ours; Hugging Face's, which is not the same function, by classes and overlap."""
    if name == "huggingface":
        equality.overlap(found, want, case)
        return None
    return equality.differing_pixels(found, want, case)


def as_found(instances: Instances) -> Found:
    """Our answer as a peer's."""
    return Found(instances.scores, instances.labels, instances.boxes, instances.rle)


def _facts(instances: Instances) -> dict[str, int]:
    height, width = instances.size_hw
    areas = dict(zip(instances.queries.tolist(), instances.areas.tolist(), strict=True))
    return {
        "instances": len(instances.scores),
        "masks": len(areas),
        "mean_area": round(float(np.mean(list(areas.values())))) if areas else 0,
        "response_bytes": response_bytes(instances),
        "dense_bytes": len(instances.scores) * height * width,
    }


def response_bytes(instances: Instances) -> int:
    """Bytes of the structured outputs; an element of a BYTES tensor carries its length in four more."""
    outputs = stack_instances([instances])
    strings = outputs.pop("rle")
    return sum(array.nbytes for array in outputs.values()) + sum(len(counts) + 4 for counts in strings.flat)
