"""How far two answers about the same images agree: instances paired one by one by the overlap of their masks.

Used wherever two models, engines or servers are compared: `m2f eval --against`, `m2f rollout` and the checks of an
export. Masks are compared as run lengths and are never unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m2f.kernels import BEST
from m2f.postprocess import Instances
from m2f.rle import decode_edges
from m2f.sampling import Edges

CONFIDENT = 0.3
"""Score from which an instance must have a partner. Below, rounding alone lets candidates come and go."""

SAME = 0.5
"""Smallest mask IoU of a pair."""


class Found(NamedTuple):
    """The instances of one image, as far as they are compared.

    Attributes:
        scores: K scores.
        labels: K class numbers.
        rle: K COCO compressed RLE `counts`.
        size_hw: height and width of the masks.
    """

    scores: Sequence[float]
    labels: Sequence[int]
    rle: Sequence[bytes]
    size_hw: tuple[int, int]


Answer = Found | Instances
"""An answer about one image: the parts that are compared, or all of the core's result."""


class Pair(NamedTuple):
    """Two instances that are taken for the same object.

    Attributes:
        first: index in the first answer.
        second: index in the second answer.
        iou: IoU of the two masks.
        score: absolute difference of the two scores.
    """

    first: int
    second: int
    iou: float
    score: float


@dataclass(frozen=True)
class Agreement:
    """What differs between two answers about the same images.

    Attributes:
        instances: number of confident instances in the first answer.
        matched: number of confident instances in the first answer with a partner in the second.
        extra: number of confident instances in the second answer without a partner in the first.
        iou: mean mask IoU of the pairs; None without pairs.
        score_max: largest score difference of a pair; None without pairs.
        score_mean: mean score difference of the pairs; None without pairs.
        differ: ids of the images that have a confident instance without a partner.
    """

    instances: int
    matched: int
    extra: int
    iou: float | None
    score_max: float | None
    score_mean: float | None
    differ: tuple[int, ...]

    @property
    def share(self) -> float:
        """From 0 to 1: `matched / (instances + extra) * iou * (1 - score_mean)`; 1 without confident instances."""
        confident = self.instances + self.extra
        if not confident:
            return 1.0
        return self.matched / confident * (self.iou or 0.0) * (1.0 - (self.score_mean or 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON has them."""
        return asdict(self)


def compare(first: Mapping[int, Answer], second: Mapping[int, Answer]) -> Agreement:
    """Compare two answers, by image id. Images that only one of them has are ignored.

    Raises:
        InputError: an RLE is invalid.
    """
    instances = missing = extra = 0
    pairs: list[Pair] = []
    differ = []
    for image_id in sorted(first.keys() & second.keys()):
        alone, others_alone = _confident(first[image_id]), _confident(second[image_id])
        instances += int(alone.sum())
        for pair in match(first[image_id], second[image_id]):
            alone[pair.first] = others_alone[pair.second] = False
            pairs.append(pair)
        missing, extra = missing + int(alone.sum()), extra + int(others_alone.sum())
        if alone.any() or others_alone.any():
            differ.append(image_id)
    return Agreement(
        instances, instances - missing, extra,
        iou=float(np.mean([pair.iou for pair in pairs])) if pairs else None,
        score_max=max((pair.score for pair in pairs), default=None),
        score_mean=float(np.mean([pair.score for pair in pairs])) if pairs else None,
        differ=tuple(differ),
    )  # fmt: skip


def match(first: Answer, second: Answer) -> list[Pair]:
    """Pair the instances of one image, each used at most once.

    A pair has equal labels, a mask IoU of at least `SAME`, and at least one score of at least `CONFIDENT`: an instance
    whose score drops from just above that limit to just below keeps its partner. Pairs of two confident instances are
    made first, then pairs with one; within each group the best IoU comes first. Masks of different sizes never pair.

    Raises:
        InputError: an RLE is invalid.
    """
    sure = _confident(first)[:, None].astype(int) + _confident(second)  # [N, M], how many of the two are confident
    may_pair = (np.asarray(first.labels)[:, None] == np.asarray(second.labels)) & (sure > 0)
    if first.size_hw != second.size_hw:
        return []
    masks = {i: _edges(first.rle[i], first.size_hw) for i in np.flatnonzero(may_pair.any(axis=1))}
    others = {j: _edges(second.rle[j], second.size_hw) for j in np.flatnonzero(may_pair.any(axis=0))}
    iou = np.zeros(sure.shape)
    for i, j in np.argwhere(may_pair):
        iou[i, j] = _iou(masks[i], others[j])
    rank = np.where(iou >= SAME, sure + iou, 0)
    pairs = []
    while rank.max(initial=0) > 0:
        i, j = map(int, np.unravel_index(rank.argmax(), rank.shape))
        pairs.append(Pair(i, j, float(iou[i, j]), abs(float(first.scores[i]) - float(second.scores[j]))))
        rank[i], rank[:, j] = 0, 0
    return pairs


def _edges(counts: bytes, size_hw: tuple[int, int]) -> Edges:
    return decode_edges(counts, *size_hw).astype(np.uint32)


def _iou(edges: Edges, others: Edges) -> float:
    """Return the IoU of two masks; 0 where their areas alone keep it below `SAME`, and for empty masks."""
    smaller, larger = sorted(int((e[1::2] - e[0::2]).sum(dtype=np.int64)) for e in (edges, others))
    if not smaller or smaller < SAME * larger:
        return 0.0
    shared = BEST.intersection(edges, others)
    return shared / (smaller + larger - shared)


def _confident(found: Answer) -> npt.NDArray[np.bool_]:
    return np.asarray(found.scores) >= CONFIDENT
