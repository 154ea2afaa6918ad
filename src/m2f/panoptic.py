"""Turn logits into a panoptic segmentation: each pixel belongs to one query, and stuff of a class is one segment.

Reference: `MaskFormerFusionHead.panoptic_postprocess` of mmdetection 3.3, which with `filter_low_score` is
`panoptic_inference` of facebookresearch/Mask2Former (mask2former/maskformer_model.py). On request
`post_process_panoptic_segmentation` of transformers 5.23 (m2f.panoptic_transformers).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from m2f.geometry import Floats, Ints
from m2f.kernels import BEST, Kernel
from m2f.label_maps import LabelMap, probability_blocks
from m2f.logits import ImageLogits, softmax
from m2f.model_facts import NO_FACTS, ModelFacts
from m2f.panoptic_transformers import GRIDS, weighted_blocks
from m2f.settings import Settings

VOID = 0  # a pixel of no segment

_BLOCK_VALUES = 1 << 19  # float32 values of a block: 2 MB for all contenders


@dataclass(frozen=True, kw_only=True)
class Panoptic:
    """The panoptic segmentation of one image.

    Attributes:
        ids: int32 [H, W], the segment of each pixel, 1..n without gaps; 0 is void.
        segments: COCO panoptic's `segments_info`, in the order of the ids: `id`, `category_id` (the class index,
            0-based), `isthing` and `iscrowd` (0 or 1), `area` in pixels, `bbox` [x, y, w, h]. Beyond COCO: `score`
            (class score of the query; of merged stuff the best) and, if the class names are known, `name`.
    """

    ids: LabelMap
    segments: list[dict[str, Any]]


class Contenders(NamedTuple):
    """Queries that compete for pixels, in the model's order. Three arrays [K]."""

    queries: Ints
    labels: Ints
    scores: Floats


class Tally(NamedTuple):
    """Pixels of each contender. Arrays int64 [K], and [K, 4].

    Attributes:
        won: pixels where the contender beats the others.
        inside: pixels of the contender's own mask, won or not.
        painted: pixels that the contender gets: the won pixels, or those won inside its own mask.
        boxes: x1, y1, x2, y2 of the painted pixels, half-open; meaningless if there are none.
    """

    won: Ints
    inside: Ints
    painted: Ints
    boxes: Ints


def panoptic(
    image: ImageLogits, settings: Settings, facts: ModelFacts = NO_FACTS, *, kernel: Kernel = BEST
) -> Panoptic:
    """Segment one image.

    Args:
        image: logits of the image; NaN in `mask_logits` counts as far outside.
        settings: those that begin with `panoptic_`, and `background_label_id`; the others are for instances.
        facts: the names of the segments, and the countable classes: each of their instances is a segment.
        kernel: computes the probabilities, and who wins a pixel.
    """
    contenders = select(image.cls_logits, settings)
    ids = np.zeros(image.geometry.original, np.int32)
    if settings.panoptic_semantics in GRIDS:
        grid = GRIDS[settings.panoptic_semantics]
        queries, scores = contenders.queries, contenders.scores
        blocks = weighted_blocks(image, queries, scores, grid=grid, max_values=_BLOCK_VALUES)
        # its mask of a query, too, is where the weighted probability is at least 0.5
        tally = compete(blocks, np.ones_like(scores), ids, kernel, filter_low_score=False)
        accepted = _accepted_by_transformers(tally, settings.panoptic_overlap_threshold)
    else:
        blocks = probability_blocks(image, contenders.queries, kernel, max_values=_BLOCK_VALUES)
        tally = compete(blocks, contenders.scores, ids, kernel, filter_low_score=settings.panoptic_filter_low_score)
        accepted = _accepted(tally, settings.panoptic_overlap_threshold)
    groups = group(contenders.labels, accepted, facts)
    _renumber(ids, groups, len(contenders.queries))
    segments = [_segment(number, members, contenders, tally, facts) for number, members in enumerate(groups, start=1)]
    return Panoptic(ids=ids, segments=segments)


def select(cls_logits: Floats, settings: Settings) -> Contenders:
    """Take the queries whose best class is not no-object and scores above the threshold."""
    if settings.background_label_id == 0:
        cls_logits = np.roll(cls_logits, -1, axis=1)  # no-object comes last
    with np.errstate(invalid="ignore"):  # an infinite logit becomes NaN, which is above no threshold
        probabilities = softmax(cls_logits)
    labels, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
    no_object = cls_logits.shape[1] - 1
    queries = np.flatnonzero((labels != no_object) & (scores > np.float32(settings.panoptic_score_threshold)))
    return Contenders(queries, labels[queries], scores[queries])


def compete(
    blocks: Iterable[tuple[slice, Floats]], scores: Floats, winners: LabelMap, kernel: Kernel, *, filter_low_score: bool
) -> Tally:
    """Give each pixel to the contender with the highest score x mask probability; the first among equals.

    Args:
        blocks: mask probabilities of the K contenders, as `probability_blocks` yields them.
        scores: float32 [K].
        winners: int32 [H, W], all 0; gets k + 1 where contender k has the pixel.
        kernel: finds the winners.
        filter_low_score: leave 0 where the winner's own mask probability is below 0.5.
    """
    count = len(scores)
    won, painted = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    inside = np.zeros(count, np.int64)
    boxes = np.array([[winners.shape[1], winners.shape[0], 0, 0]] * (count + 1))
    for rows, probabilities in blocks if count else ():
        winner = kernel.compete(probabilities, scores, inside)
        tally = np.bincount(winner.reshape(-1) + count, minlength=2 * count + 1)
        outside_own, inside_own = tally[count::-1], tally[count:]
        won += outside_own + inside_own
        painted += inside_own if filter_low_score else outside_own + inside_own
        if filter_low_score:
            np.maximum(winner, 0, out=winner)
        else:
            np.abs(winner, out=winner)
        _extend(boxes, winner, rows.start)
        winners[rows] = winner
    return Tally(won[1:], inside, painted[1:], boxes[1:])


def _extend(boxes: Ints, winner: LabelMap, top: int) -> None:
    """Extend the boxes [K + 1, 4] by a block [rows, W] that starts at row `top`, run by run."""
    changes = winner[:, 1:] != winner[:, :-1]
    rows, columns = np.nonzero(changes)
    every_row = np.arange(len(winner))
    began = np.concatenate([winner[:, 0], winner[rows, columns + 1]])
    ended = np.concatenate([winner[:, -1], winner[rows, columns]])
    np.minimum.at(boxes[:, 0], began, np.concatenate([np.zeros_like(every_row), columns + 1]))
    np.minimum.at(boxes[:, 1], began, top + np.concatenate([every_row, rows]))
    np.maximum.at(boxes[:, 2], ended, np.concatenate([np.full_like(every_row, winner.shape[1]), columns + 1]))
    np.maximum.at(boxes[:, 3], ended, top + 1 + np.concatenate([every_row, rows]))


def _accepted(tally: Tally, overlap_threshold: float) -> Ints:
    """Return the contenders that win enough of their own mask, and at least one pixel of the map."""
    overlap = tally.won / np.maximum(tally.inside, 1)
    return np.flatnonzero((tally.inside > 0) & (tally.painted > 0) & (overlap >= overlap_threshold))


def _accepted_by_transformers(tally: Tally, overlap_threshold: float) -> Ints:
    """Do the same as transformers does: in float32, and a share that equals the threshold is refused."""
    overlap = tally.won.astype(np.float32) / np.maximum(tally.inside, 1).astype(np.float32)
    return np.flatnonzero((tally.inside > 0) & (tally.won > 0) & (overlap.astype(np.float64) > overlap_threshold))


def group(labels: Ints, accepted: Ints, facts: ModelFacts) -> list[list[int]]:
    """Return the contenders of each segment, in order: a thing is a segment, stuff of one class is one segment."""
    groups: list[list[int]] = []
    stuff: dict[int, list[int]] = {}
    for k in accepted.tolist():
        label = int(labels[k])
        if facts.is_thing(label):
            groups.append([k])
        elif label in stuff:
            stuff[label].append(k)
        else:
            groups.append(stuff.setdefault(label, [k]))
    return groups


def _renumber(winners: LabelMap, groups: list[list[int]], count: int) -> None:
    """Replace winners k + 1 by the numbers of their groups, in place; 0 for a winner of no group."""
    numbers = np.zeros(count + 1, np.int32)
    for number, members in enumerate(groups, start=1):
        numbers[np.add(members, 1)] = number
    for row in winners:
        row[:] = numbers[row]


def _segment(
    number: int, members: list[int], contenders: Contenders, tally: Tally, facts: ModelFacts
) -> dict[str, Any]:
    label = int(contenders.labels[members[0]])
    x1, y1 = tally.boxes[members, :2].min(axis=0).tolist()
    x2, y2 = tally.boxes[members, 2:].max(axis=0).tolist()
    segment = {
        "id": number,
        "category_id": label,
        "isthing": int(facts.is_thing(label)),
        "iscrowd": 0,
        "area": int(tally.painted[members].sum()),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": float(contenders.scores[members].max()),
    }
    return segment | ({"name": facts.class_names[label]} if label < len(facts.class_names) else {})
