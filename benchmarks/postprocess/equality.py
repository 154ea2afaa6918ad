"""Same instances, same pixels: what every way has to show before it is timed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco
from torch.nn.functional import interpolate

from m2f.postprocess import Instances

from .peers import Found
from .scenes import Case

SCORE_TOLERANCE = 1e-5
LOGIT_TOLERANCE = 1e-3  # of a pixel whose side of 0 two orders of float32 operations may see differently
LEAST_OVERLAP = 0.8  # with Hugging Face's masks, by area


class UnequalError(Exception):
    """A way does not find the same instances; a time for it would mean nothing."""


def differing_pixels(found: Found, want: Instances, case: Case, *, tolerance: float = LOGIT_TOLERANCE) -> int:
    """Hold a way's answer against ours and count the pixels that rounding puts on the other side of 0.

    Raises:
        UnequalError: other instances, scores or boxes, or a pixel that rounding does not explain.
    """
    found = _above(found, case.settings.score_threshold)
    if len(found.scores) != len(want.scores):
        raise UnequalError(f"{case.name}: {len(found.scores)} instances; expected {len(want.scores)}")
    same, other = _pair(found, want)
    pixels = sum(_rounded(found.rle[i], want, j, case, tolerance) for i, j in other)
    for i, j in same + other:
        if abs(found.scores[i] - want.scores[j]) > SCORE_TOLERANCE:
            raise UnequalError(f"{case.name}: score {found.scores[i]}; expected {want.scores[j]}")
    if found.boxes is not None:
        for i, j in same:
            if not np.array_equal(found.boxes[i], want.boxes[j]):
                raise UnequalError(f"{case.name}: box {found.boxes[i]}; expected {want.boxes[j]}")
    return pixels


def overlap(found: Found, want: Instances, case: Case) -> float:
    """Return the overlap of Hugging Face's masks with ours: best partner of the same class each, weighted by area.

    Raises:
        UnequalError: other classes, or an overlap below `LEAST_OVERLAP`.
    """
    kept = [i for i, area in enumerate(want.areas) if area or case.settings.score_threshold > 0]
    if case.settings.score_threshold > 0 and sorted(found.labels.tolist()) != sorted(want.labels[kept].tolist()):
        raise UnequalError(f"{case.name}: classes {sorted(found.labels)}; expected {sorted(want.labels[kept])}")
    if not found.rle:
        return 1.0
    theirs, ours = ([_coco(counts, case) for counts in rle] for rle in (found.rle, want.rle))
    ious = coco.iou(theirs, ours, [False] * len(ours)) * (found.labels[:, None] == want.labels[None])
    result = float(np.average(ious.max(axis=1), weights=coco.area(theirs)))
    if result < LEAST_OVERLAP:
        raise UnequalError(f"{case.name}: overlap {result:.2f}; expected at least {LEAST_OVERLAP}")
    return result


def _above(found: Found, threshold: float) -> Found:
    kept = np.flatnonzero(found.scores >= np.float32(threshold))
    boxes = None if found.boxes is None else found.boxes[kept]
    return Found(found.scores[kept], found.labels[kept], boxes, [found.rle[i] for i in kept])


Pairs = list[tuple[int, int]]
Scores = npt.NDArray[np.float32]


def _pair(found: Found, want: Instances) -> tuple[Pairs, Pairs]:
    """Pair rows: those with the same class and the same pixels, then the rest by class and score."""
    same = _match(_keys(found.labels, found.rle), _keys(want.labels, want.rle), found.scores, want.scores)
    mine, theirs = ({pair[side] for pair in same} for side in (0, 1))
    rest = _match(
        {i: label for i, label in enumerate(found.labels.tolist()) if i not in mine},
        {j: label for j, label in enumerate(want.labels.tolist()) if j not in theirs},
        found.scores,
        want.scores,
    )
    if len(same) + len(rest) != len(want.scores):
        raise UnequalError(f"classes {sorted(found.labels)}; expected {sorted(want.labels)}")
    return same, rest


def _keys(labels: npt.NDArray[np.generic], rle: Sequence[bytes]) -> dict[int, object]:
    return dict(enumerate(zip(labels.tolist(), rle, strict=True)))


def _match(found: dict[int, object], want: dict[int, object], found_scores: Scores, want_scores: Scores) -> Pairs:
    """Pair rows with equal keys, in the order of their scores."""
    waiting: dict[object, list[int]] = defaultdict(list)
    for j in sorted(want, key=lambda row: want_scores[row]):
        waiting[want[j]].append(j)
    pairs = []
    for i in sorted(found, key=lambda row: -found_scores[row]):
        if waiting[found[i]]:
            pairs.append((i, waiting[found[i]].pop()))
    return pairs


def _rounded(counts: bytes, want: Instances, row: int, case: Case, tolerance: float) -> int:
    """Count the pixels in which a mask differs; each must have a logit of almost 0 in float64."""
    differs = coco.decode(_coco(counts, case)) != coco.decode(_coco(want.rle[row], case))
    worst = float(exact_logits(case, int(want.queries[row])).abs()[torch.from_numpy(differs)].max())
    if worst > tolerance:
        raise UnequalError(f"{case.name}: {differs.sum()} pixels differ, one with a logit of {worst:.3g}")
    return int(differs.sum())


def exact_logits(case: Case, query: int) -> torch.Tensor:
    """One query's logits [H, W] in float64, straight from the definition."""
    logits = torch.from_numpy(case.mask_logits[query]).double()[None, None]
    height, width = case.img_shape
    padded = interpolate(logits, size=case.padded, mode="bilinear", align_corners=False)
    return interpolate(padded[:, :, :height, :width], size=case.ori_shape, mode="bilinear", align_corners=False)[0, 0]


def _coco(counts: bytes, case: Case) -> dict[str, object]:
    return {"size": list(case.ori_shape), "counts": counts}
