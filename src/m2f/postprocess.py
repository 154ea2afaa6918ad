"""Turn logits into instances: mmdetection's Mask2Former semantics, with work only where it can matter.

Reference: `MaskFormerFusionHead.instance_postprocess` and `Mask2FormerHead.predict` of mmdetection 3.3. `profiles` has
the differences of other systems, which a request may ask for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError
from m2f.geometry import Floats, Ints, SizeHW, bilinear_taps
from m2f.kernels import BEST, Kernel
from m2f.limits import WORK_LIMITS, WorkLimits
from m2f.logits import ImageLogits
from m2f.masks import Masks, sample_masks
from m2f.model_facts import NO_FACTS, ModelFacts
from m2f.parameters import NO_LIMIT
from m2f.profiles import PROFILES, grid_taps
from m2f.record import phase
from m2f.rle import check_bytes
from m2f.settings import Settings

_FEWER = "lower 'pre_top_k', or raise 'score_threshold'"


@dataclass(frozen=True, kw_only=True)
class Instances:
    """The instances of one image, best first.

    Attributes:
        scores: float32 [K], class score x mask score.
        labels: int32 [K], class index.
        boxes: float32 [K, 4], x1 y1 x2 y2 in original-image pixels, half-open.
        areas: int32 [K], mask pixels.
        queries: int32 [K], the query of each instance.
        rle: K COCO compressed RLE `counts`; empty strings when masks are not exported.
        size_hw: (height, width) of the original image.
    """

    scores: Floats
    labels: npt.NDArray[np.int32]
    boxes: Floats
    areas: npt.NDArray[np.int32]
    queries: npt.NDArray[np.int32]
    rle: list[bytes] = field(repr=False)
    size_hw: SizeHW


class Candidates(NamedTuple):
    """Query-class pairs that the class scores leave, best first. Three arrays [N]."""

    scores: Floats
    labels: Ints
    queries: Ints


class Scored(NamedTuple):
    """Candidates with their final scores and the index of their mask, arrays [N], and the masks of their queries."""

    scores: Floats
    labels: Ints
    mask_of: Ints
    masks: Masks


def postprocess(
    image: ImageLogits,
    settings: Settings,
    facts: ModelFacts = NO_FACTS,
    *,
    kernel: Kernel = BEST,
    limits: WorkLimits = WORK_LIMITS,
) -> Instances:
    """Turn one image's logits into scored instances.

    Args:
        image: logits of the image. Some mask logits may be NaN or infinite: the masks are mmdetection's then, too, and
            the scores are finite (`masks.Masks`).
        settings: thresholds, limits and semantics.
        facts: names that the settings may call classes by, and the classes that have instances.
        kernel: computes the masks.
        limits: most work that the image may cause.

    Raises:
        InputError: a class that does not exist, or masks that take too much work or too long an answer.
    """
    profile = PROFILES[settings.semantics]
    thresholds = _thresholds(settings, facts, image.num_classes)
    with phase("select"):
        scores = image.class_scores(settings.background_label_id)
        candidates = select(scores, settings, thresholds, max_candidates=limits.candidates)
        queries, mask_of = np.unique(candidates.queries, return_inverse=True)
    with phase("masks"):
        masks = _sample(image, queries, profile.grid, kernel, limits)
    scores = candidates.scores * masks.scores.astype(np.float32)[mask_of]
    found = Scored(scores, candidates.labels, mask_of, masks)
    kept = keep(found, settings, thresholds, limits)
    boxes = masks.boxes[mask_of[kept]].astype(np.float32)
    rows = mask_of[kept].tolist()
    return Instances(
        scores=scores[kept],
        labels=candidates.labels[kept].astype(np.int32),
        boxes=boxes if profile.gives_boxes else np.zeros_like(boxes),
        areas=masks.areas[mask_of[kept]].astype(np.int32),
        queries=candidates.queries[kept].astype(np.int32),
        rle=_encoded(masks, rows) if settings.export_postprocess_mask else [b""] * len(rows),
        size_hw=image.geometry.original,
    )


def select(
    scores: Floats, settings: Settings, thresholds: Floats, *, max_candidates: int = WORK_LIMITS.candidates
) -> Candidates:
    """Take the best query-class pairs that can still reach the threshold of their class.

    A mask score is at most 1, so a pair whose class score is below the threshold cannot reach it. Dropping the pair
    before any mask work changes nothing. A pair that is dropped for its class alone still takes a place among the best.

    Args:
        scores: class scores, float32 [Q, C].
        settings: how many pairs are taken.
        thresholds: lowest score of an instance of each class, float32 [C].
        max_candidates: number of pairs above which InputError is raised.
    """
    flat = scores.reshape(-1)
    order = np.flatnonzero(flat >= thresholds.min(initial=np.inf))
    if settings.pre_top_k != NO_LIMIT:
        order = _largest(flat, order, settings.pre_top_k)
    if PROFILES[settings.semantics].as_many_as_queries:
        order = _largest(flat, order, len(scores))
    if len(order) > max_candidates:
        raise InputError(
            f"an image has {len(order)} candidates; allowed are {max_candidates}: {_FEWER}", kind="output_too_large"
        )
    order = order[np.argsort(-flat[order], kind="stable")]
    queries, labels = np.divmod(order, scores.shape[1])
    passed = flat[order] >= thresholds[labels]
    return Candidates(flat[order][passed], labels[passed], queries[passed])


def keep(found: Scored, settings: Settings, thresholds: Floats, limits: WorkLimits = WORK_LIMITS) -> Ints:
    """Apply thresholds, NMS, the cap per class and the cap per image, in this order.

    Returns:
        int64 [K], the candidates that stay, best first; equal scores stay in the order of the candidates.

    Raises:
        InputError: NMS or the cap per class would take too long.
    """
    passes = found.scores >= thresholds[found.labels]
    if PROFILES[settings.semantics].drops_empty:
        passes &= found.masks.areas[found.mask_of] > 0
    order = np.flatnonzero(passes)
    order = order[np.argsort(-found.scores[order], kind="stable")]
    most = len(order) if settings.keep_top_k == NO_LIMIT else settings.keep_top_k
    if settings.iou_threshold >= 1 and settings.max_output_boxes_per_class == NO_LIMIT:
        return order[:most]
    labels, masks = found.labels[order], found.mask_of[order]
    _check_comparisons(labels, masks, found.masks, compares=settings.iou_threshold < 1, limits=limits)
    kept: dict[int, list[int]] = {}  # masks by class
    passed: list[int] = []
    iou = cache(found.masks.iou)  # two masks may meet in many classes
    for candidate, mask, label in zip(order.tolist(), masks.tolist(), labels.tolist(), strict=True):
        same_class = kept.setdefault(label, [])
        if _may_join(mask, same_class, iou, settings):
            same_class.append(mask)
            passed.append(candidate)
            if len(passed) == most:
                break
    return np.array(passed, np.int64)


def _thresholds(settings: Settings, facts: ModelFacts, num_classes: int) -> Floats:
    """Return the lowest score of an instance of each class, float32 [C]; infinity for a class that is not wanted."""
    thresholds = settings.thresholds(facts.class_names, num_classes)
    things = facts.thing_classes if PROFILES[settings.semantics].drops_stuff else None
    for wanted in (settings.class_indices(facts.class_names, num_classes), things):
        if wanted is not None:
            thresholds[[label not in wanted for label in range(num_classes)]] = np.inf
    return thresholds


def _sample(image: ImageLogits, queries: Ints, grid: SizeHW | None, kernel: Kernel, limits: WorkLimits) -> Masks:
    """Sample the masks of some queries at the image's size; if there is a grid, scores are those on the grid."""
    sample = partial(sample_masks, image.mask_logits, queries, kernel=kernel, limits=limits)
    if grid is None:
        return sample(kernel.operator(image.geometry))
    geometry = image.geometry
    to_grid = map(bilinear_taps, geometry.cells, grid)
    to_image = map(grid_taps, geometry, grid)
    on_grid, at_size = (sample(kernel.taps_operator(geometry.cells, *taps)) for taps in (to_grid, to_image))
    return replace(at_size, scores=on_grid.scores)


def _encoded(masks: Masks, rows: list[int]) -> list[bytes]:
    """Return the RLE of each row's mask; rows of one query share it."""
    rle, num_bytes = {}, 0
    for row, times in Counter(rows).items():
        rle[row] = masks.rle(row)
        num_bytes += times * len(rle[row])
        check_bytes(num_bytes)  # before more RLE is made
    return [rle[row] for row in rows]


def _check_comparisons(labels: Ints, mask_of: Ints, masks: Masks, *, compares: bool, limits: WorkLimits) -> None:
    """Refuse candidates, int64 [N] each, that would take some seconds to compare."""
    if len(labels) > limits.compared_candidates:
        raise InputError(
            f"an image has {len(labels)} candidates for 'iou_threshold' or 'max_output_boxes_per_class'; allowed are "
            f"{limits.compared_candidates}: {_FEWER}",
            kind="output_too_large",
        )
    if not compares or not len(labels):
        return
    in_classes = int(np.bincount(labels) @ np.bincount(labels, masks.num_edges[mask_of]))
    edges = min(in_classes, len(masks) * int(masks.num_edges.sum()))  # two masks are compared once
    if edges > limits.compared_edges:
        raise InputError(
            f"'iou_threshold' would compare masks at {edges} edges; allowed are {limits.compared_edges}: {_FEWER}",
            kind="output_too_large",
        )


def _may_join(mask: int, better: list[int], iou: Callable[[int, int], float], settings: Settings) -> bool:
    """Return whether NMS and the cap per class keep a mask, given the better masks of its class."""
    if len(better) == settings.max_output_boxes_per_class:
        return False
    if settings.iou_threshold >= 1:
        return True
    return all(iou(min(mask, other), max(mask, other)) <= settings.iou_threshold for other in better)


def _largest(values: Floats, indices: Ints, count: int) -> Ints:
    """Return the `count` of `indices` with the largest values, ascending; of equal values the lowest indices."""
    if len(indices) <= count:
        return indices
    mine = values[indices]
    least = np.partition(mine, len(mine) - count)[len(mine) - count]
    above, equal = indices[mine > least], indices[mine == least]
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))
