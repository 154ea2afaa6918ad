"""Do two servers find the same? Instances of the same images, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask as coco_mask

CONFIDENT = 0.3
"""Score from which an instance must have a partner: below, candidates swap places at a rounding."""

SAME = 0.5
"""Mask IoU from which two instances of one class are taken for the same."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Parity:
    """What differs between two sets of results.

    Attributes:
        instances: confident ones of the first set.
        matched: those of them with a partner in the second.
        extra: confident ones of the second without a partner in the first.
        iou: mean mask IoU of the pairs; None where there are none, as below.
        score_max, score_mean: score differences of the pairs.
        differ: ids of the images with an instance without a partner.
    """

    instances: int
    matched: int
    extra: int
    iou: float | None
    score_max: float | None
    score_mean: float | None
    differ: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def compare(first: Mapping[int, Sequence[Row]], second: Mapping[int, Sequence[Row]]) -> Parity:
    """Compare the COCO results of the images that both have, by image id.

    A pair is one class, mask IoU of 0.5 or more, and at least one of the two is confident: so a score that moves from
    just above the limit to just below it still has its partner.
    """
    instances = extra = 0
    ious: list[float] = []
    scores: list[float] = []
    matched = 0
    alone = []
    for image_id in sorted(first.keys() & second.keys()):
        before, after = first[image_id], second[image_id]
        pairs = match(before, after)
        sure, new = _confident(before), _confident(after)
        with_partner = [i for i, _, _ in pairs if sure[i]]
        without = int(sure.sum()) - len(with_partner)
        unknown = int(new.sum()) - sum(bool(new[j]) for _, j, _ in pairs)
        instances, matched, extra = instances + int(sure.sum()), matched + len(with_partner), extra + unknown
        ious += [iou for _, _, iou in pairs]
        scores += [abs(before[i]["score"] - after[j]["score"]) for i, j, _ in pairs]
        if without or unknown:
            alone.append(image_id)
    return Parity(
        instances, matched, extra,
        float(np.mean(ious)) if ious else None,
        max(scores, default=None),
        float(np.mean(scores)) if scores else None,
        tuple(alone),
    )  # fmt: skip


def match(first: Sequence[Row], second: Sequence[Row]) -> list[tuple[int, int, float]]:
    """Pair the instances of one image: two confident ones first, then best mask IoU first, each used once.

    Returns:
        Index in `first`, index in `second`, mask IoU.
    """
    if not first or not second:
        return []
    masks = [[row["segmentation"] for row in rows] for rows in (first, second)]
    iou = np.asarray(coco_mask.iou(*masks, [0] * len(second)))  # [N, M]
    labels, others = (np.array([row["category_id"] for row in rows]) for rows in (first, second))
    sure = _confident(first)[:, None].astype(int) + _confident(second)
    rank = np.where((labels[:, None] == others) & (iou >= SAME) & (sure > 0), sure + iou, 0)
    pairs = []
    while rank.max() > 0:
        i, j = np.unravel_index(rank.argmax(), rank.shape)
        pairs.append((int(i), int(j), float(iou[i, j])))
        rank[i], rank[:, j] = 0, 0
    return pairs


def _confident(rows: Sequence[Row]) -> npt.NDArray[np.bool_]:
    return np.array([row["score"] >= CONFIDENT for row in rows], bool)
