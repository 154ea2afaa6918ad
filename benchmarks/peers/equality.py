"""The same instances as mmdetection itself finds: what every service has to show before it is timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco

from .wire import Answer

THRESHOLD = 0.5
SCORE_TOLERANCE = 1e-3
LEAST_IOU = 0.98  # a pixel at a logit of 0 may fall on the other side; small masks have 100 pixels


class UnequalError(Exception):
    """A service does not find the same instances; a time for it would mean nothing."""


class Equality(NamedTuple):
    """How near the answers of a service are.

    Attributes:
        instances: number that have a partner.
        at_threshold: instances without one, whose score is the threshold to rounding.
        score_difference: largest.
        least_iou: of a mask and its partner's.
        same_masks: share of the masks that are equal to the pixel.
    """

    instances: int
    at_threshold: int
    score_difference: float
    least_iou: float
    same_masks: float


def compare(answers: Sequence[Answer], expected: Sequence[Answer]) -> Equality:
    """Pair the instances of each picture by class and mask.

    Raises:
        UnequalError: an instance has no partner, or its score or mask differs by more than rounding explains.
    """
    differences: list[float] = []
    ious: list[float] = []
    same = without = 0
    for number, (found, wanted) in enumerate(zip(answers, expected, strict=True)):
        pairs, alone = _pairs(found, wanted)
        if any(abs(score - THRESHOLD) > SCORE_TOLERANCE for score in alone):
            raise UnequalError(f"picture {number}: {len(found.labels)} instances; expected {len(wanted.labels)}")
        without += len(alone)
        for i, j, iou in pairs:
            differences.append(abs(found.scores[i] - wanted.scores[j]))
            ious.append(iou)
            same += found.rles[i]["counts"] == wanted.rles[j]["counts"]
    difference, least = max(differences, default=0.0), min(ious, default=1.0)
    if difference > SCORE_TOLERANCE or least < LEAST_IOU:
        raise UnequalError(f"scores differ by {difference:.2g}, least mask IoU {least:.3f}")
    return Equality(len(ious), without, difference, least, same / len(ious) if ious else 1.0)


def _pairs(found: Answer, wanted: Answer) -> tuple[list[tuple[int, int, float]], list[float]]:
    """Return pairs (row, partner, IoU), nearest masks first, and the scores of the rows without a partner."""
    pairs: list[tuple[int, int, float]] = []
    free, left = set(range(len(found.labels))), set(range(len(wanted.labels)))
    if free and left:
        same_class = np.array(found.labels)[:, None] == np.array(wanted.labels)[None]
        ious = coco.iou(found.rles, wanted.rles, [False] * len(wanted.rles))
        # Hugging Face draws segments over each other, and may leave nothing of one
        ious[(coco.area(found.rles) == 0)[:, None] & (coco.area(wanted.rles) == 0)[None]] = 1.0
        ious *= same_class
        # of twins with one mask, the one with the nearer score first
        order = ious - 1e-3 * np.abs(np.array(found.scores)[:, None] - np.array(wanted.scores)[None])
        for i, j in zip(*np.unravel_index(np.argsort(-order, axis=None), ious.shape), strict=True):
            if i in free and j in left and ious[i, j] > 0:
                pairs.append((int(i), int(j), float(ious[i, j])))
                free.discard(i)
                left.discard(j)
    return pairs, [found.scores[i] for i in free] + [wanted.scores[j] for j in left]
