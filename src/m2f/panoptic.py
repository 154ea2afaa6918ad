"""Logits in, a panoptic segmentation out: each pixel to one query, stuff of a class as one segment.

Reference: `MaskFormerFusionHead.panoptic_postprocess` of mmdetection 3.3, which with `filter_low_score` is
`panoptic_inference` of facebookresearch/Mask2Former (mask2former/maskformer_model.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from m2f import native
from m2f.geometry import Floats, Ints
from m2f.label_maps import LabelMap, MaskProbabilities
from m2f.postprocess import check_shapes
from m2f.settings import Settings

VOID = 0  # a pixel of no segment

_BLOCK_VALUES = 1 << 19  # float32 of a block: 2 MB for all the contenders


@dataclass(frozen=True, kw_only=True)
class Panoptic:
    """The panoptic segmentation of one image.

    Attributes:
        ids: int32 [H, W], the segment of each pixel, 1..n without gaps; 0 is void.
        segments: COCO panoptic's `segments_info`, in the order of the ids: `id`, `category_id` (the class index,
            0-based), `isthing` and `iscrowd` (0 or 1), `area` in pixels, `bbox` [x, y, w, h], and beyond COCO
            `score` (class score of the query, the best one where stuff was merged) and, where known, `name`.
    """

    ids: LabelMap
    segments: list[dict[str, Any]]


class Contenders(NamedTuple):
    """Queries that compete for pixels, in the model's order. Three arrays [K]."""

    queries: Ints
    labels: Ints
    scores: Floats


class Tally(NamedTuple):
    """What each contender came to. Arrays int64 [K], and [K, 4].

    Attributes:
        won: pixels where it beats the others.
        inside: pixels of its own mask, won or not.
        painted: pixels it gets: those won, or those won inside its own mask.
        boxes: x1, y1, x2, y2 of the painted ones, half-open; meaningless where there are none.
    """

    won: Ints
    inside: Ints
    painted: Ints
    boxes: Ints


def panoptic(
    cls_logits: Floats,
    mask_logits: Floats,
    *,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    settings: Settings,
    class_names: tuple[str, ...] = (),
    thing_classes: frozenset[int] | None = None,
    mask_stride: int = 4,
    kernel: str | None = None,
) -> Panoptic:
    """Segment one image.

    Args:
        cls_logits: float32 [Q, C+1].
        mask_logits: float32 [Q, h, w], not upsampled. NaN counts as far outside.
        img_shape: height and width of the image inside the padded network input.
        ori_shape: height and width of the original image.
        settings: `panoptic_score_threshold`, `panoptic_overlap_threshold`, `panoptic_filter_low_score` and
            `background_label_id`; the others are for instances.
        class_names: for the segments' `name`.
        thing_classes: indices of the countable classes, whose instances are segments each; None: all.
        mask_stride: network-input pixels per mask cell along each axis.
        kernel: one of `native.kernels`; None: the best.

    Raises:
        InputError: shapes that do not fit together, or a kernel that does not exist.
    """
    _, padded = check_shapes(cls_logits, mask_logits, img_shape, ori_shape, mask_stride)
    kernel = native.resolve(kernel)
    contenders = select(cls_logits, settings)
    masks = MaskProbabilities(
        mask_logits, contenders.queries, padded=padded, valid=img_shape, original=ori_shape, kernel=kernel
    )
    ids = np.zeros(ori_shape, np.int32)
    tally = compete(masks, contenders.scores, ids, filter_low_score=settings.panoptic_filter_low_score, kernel=kernel)
    accepted = _accepted(tally, settings.panoptic_overlap_threshold)
    groups = group(contenders.labels, accepted, thing_classes)
    _renumber(ids, groups, len(contenders.queries))
    segments = [
        _segment(number, members, contenders, tally, class_names=class_names, thing_classes=thing_classes)
        for number, members in enumerate(groups, start=1)
    ]
    return Panoptic(ids=ids, segments=segments)


def select(cls_logits: Floats, settings: Settings) -> Contenders:
    """Take the queries whose best class is not no-object and scores above the threshold."""
    if settings.background_label_id == 0:
        cls_logits = np.roll(cls_logits, -1, axis=1)  # no-object comes last
    with np.errstate(invalid="ignore"):  # an infinite logit makes NaN, which is above no threshold
        exponent = np.exp(cls_logits - cls_logits.max(axis=1, keepdims=True))
        probabilities = exponent / exponent.sum(axis=1, keepdims=True)
    labels, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
    no_object = cls_logits.shape[1] - 1
    queries = np.flatnonzero((labels != no_object) & (scores > np.float32(settings.panoptic_score_threshold)))
    return Contenders(queries, labels[queries], scores[queries])


def compete(
    masks: MaskProbabilities, scores: Floats, winners: LabelMap, *, filter_low_score: bool, kernel: str
) -> Tally:
    """Give each pixel to the contender with the highest score x mask probability; the first among equals.

    Args:
        masks: of the K contenders.
        scores: float32 [K].
        winners: int32 [H, W], all 0; gets k + 1 where contender k has the pixel.
        filter_low_score: leave 0 where the winner's own mask probability is below 0.5.
        kernel: one of `native.kernels`.
    """
    count = len(scores)
    won, painted = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    inside = np.zeros(count, np.int64)
    boxes = np.array([[winners.shape[1], winners.shape[0], 0, 0]] * (count + 1))
    find = block_winners if kernel == native.NUMPY else partial(native.compete, kernel=kernel)
    for rows, probabilities in masks.blocks(_BLOCK_VALUES) if count else ():
        winner = find(probabilities, scores, inside)
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


def block_winners(probabilities: Floats, scores: Floats, areas: Ints) -> LabelMap:
    """Find the winner of each pixel of a block.

    Args:
        probabilities: float32 [K, rows, W].
        scores: float32 [K].
        areas: int64 [K], to which the pixels of each contender's mask are added.

    Returns:
        int32 [rows, W]: k + 1 where contender k wins inside its own mask, -(k + 1) where it wins outside.
    """
    best, winner = np.full(probabilities.shape[1:], -1, np.float32), np.zeros(probabilities.shape[1:], np.int32)
    for k, (score, probability) in enumerate(zip(scores, probabilities, strict=True)):
        mine = probability >= np.float32(0.5)
        areas[k] += np.count_nonzero(mine)
        value = probability * score
        better = value > best
        np.copyto(best, value, where=better)
        np.copyto(winner, np.where(mine, k + 1, -(k + 1)), where=better, casting="same_kind")
    return winner


def _extend(boxes: Ints, winner: LabelMap, top: int) -> None:
    """Make the boxes [K + 1, 4] hold a block [rows, W] that starts at row `top`; looks only at where runs begin."""
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
    """The contenders that keep enough of their own mask, and at least a pixel of the map."""
    overlap = tally.won / np.maximum(tally.inside, 1)
    return np.flatnonzero((tally.inside > 0) & (tally.painted > 0) & (overlap >= overlap_threshold))


def group(labels: Ints, accepted: Ints, thing_classes: frozenset[int] | None) -> list[list[int]]:
    """Return the contenders of each segment, in the order of the segments: one each, but stuff of a class together."""
    groups: list[list[int]] = []
    stuff: dict[int, list[int]] = {}
    for k in accepted.tolist():
        label = int(labels[k])
        if _is_thing(label, thing_classes):
            groups.append([k])
        elif label in stuff:
            stuff[label].append(k)
        else:
            groups.append(stuff.setdefault(label, [k]))
    return groups


def _is_thing(label: int, thing_classes: frozenset[int] | None) -> bool:
    return thing_classes is None or label in thing_classes


def _renumber(winners: LabelMap, groups: list[list[int]], count: int) -> None:
    """Turn winners k + 1 into the numbers of their groups, in place; 0 for those of no group."""
    numbers = np.zeros(count + 1, np.int32)
    for number, members in enumerate(groups, start=1):
        numbers[np.add(members, 1)] = number
    for row in winners:
        row[:] = numbers[row]


def _segment(
    number: int,
    members: list[int],
    contenders: Contenders,
    tally: Tally,
    *,
    class_names: tuple[str, ...],
    thing_classes: frozenset[int] | None,
) -> dict[str, Any]:
    label = int(contenders.labels[members[0]])
    x1, y1 = tally.boxes[members, :2].min(axis=0).tolist()
    x2, y2 = tally.boxes[members, 2:].max(axis=0).tolist()
    segment = {
        "id": number,
        "category_id": label,
        "isthing": int(_is_thing(label, thing_classes)),
        "iscrowd": 0,
        "area": int(tally.painted[members].sum()),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": float(contenders.scores[members].max()),
    }
    return segment | ({"name": class_names[label]} if label < len(class_names) else {})
