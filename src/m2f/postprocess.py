"""Logits in, instances out: mmdetection's Mask2Former semantics, with work only where it can matter.

Reference: `MaskFormerFusionHead.instance_postprocess` and `Mask2FormerHead.predict` of mmdetection 3.3. Where other
systems do otherwise, and a request may ask for theirs, stands in `semantics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError
from m2f.geometry import Floats, Ints, bilinear_taps
from m2f.limits import MAX_CANDIDATES, MAX_CLASSES, MAX_COMPARED_CANDIDATES, MAX_COMPARED_EDGES, MAX_QUERIES, MAX_SIDE
from m2f.masks import Masks, MaskSampler
from m2f.profiles import PROFILES, grid_taps
from m2f.record import phase
from m2f.rle import check_bytes
from m2f.settings import NO_LIMIT, Settings

_FEWER = "lower 'pre_top_k', or raise 'score_threshold'"


@dataclass(frozen=True, kw_only=True)
class Instances:
    """The instances of one image, best first.

    Attributes:
        scores: float32 [K], class score x mask score.
        labels: int32 [K], class index.
        boxes: float32 [K, 4], x1 y1 x2 y2 in original-image pixels, half-open.
        areas: int32 [K], mask pixels.
        queries: int32 [K], the query each came from.
        rle: K COCO compressed RLE `counts`; empty strings when masks are not exported.
        size_hw: height and width of the original image.
    """

    scores: Floats
    labels: npt.NDArray[np.int32]
    boxes: Floats
    areas: npt.NDArray[np.int32]
    queries: npt.NDArray[np.int32]
    rle: list[bytes] = field(repr=False)
    size_hw: tuple[int, int]


class Candidates(NamedTuple):
    """Query-class pairs that survived the class scores, best first. Three arrays [N]."""

    scores: Floats
    labels: Ints
    queries: Ints


def postprocess(
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
    threads: int = 1,
) -> Instances:
    """Turn one image's logits into scored instances.

    Args:
        cls_logits: float32 [Q, C+1].
        mask_logits: float32 [Q, h, w], not upsampled. Some may be NaN or infinite: masks are mmdetection's then, too,
            and scores finite (see `masks.Masks`).
        img_shape: height and width of the image inside the padded network input.
        ori_shape: height and width of the original image.
        settings: thresholds, limits and semantics.
        class_names: names that the settings may call classes by.
        thing_classes: indices of the classes that have instances; the others are stuff. None: all.
        mask_stride: network-input pixels per mask cell along each axis.
        kernel: one of `native.kernels`; None: the best.
        threads: that share the masks.

    Raises:
        InputError: shapes that do not fit together, a class or a kernel that does not exist, or masks that are too much
            to work on or to answer.
    """
    cells, padded = check_shapes(cls_logits, mask_logits, img_shape, ori_shape, mask_stride)
    profile = PROFILES[settings.semantics]
    thresholds = _thresholds(settings, class_names, cls_logits.shape[1] - 1, thing_classes)
    with phase("select"):
        candidates = select(class_scores(cls_logits, settings.background_label_id), settings, thresholds)
        queries, mask_of = np.unique(candidates.queries, return_inverse=True)
    with phase("masks"):
        if profile.grid is None:
            sampler = MaskSampler.to_image(
                cells=cells, padded=padded, valid=img_shape, original=ori_shape, kernel=kernel, threads=threads
            )
            masks = sampler.sample(mask_logits, queries)
        else:
            masks = _sample_by_grid(
                mask_logits, queries, grid=profile.grid, original=ori_shape, kernel=kernel, threads=threads
            )
    scores = candidates.scores * masks.scores.astype(np.float32)[mask_of]
    kept = keep(scores, candidates.labels, masks, mask_of, settings=settings, thresholds=thresholds)
    boxes = masks.boxes[mask_of[kept]].astype(np.float32)
    rows = mask_of[kept].tolist()
    return Instances(
        scores=scores[kept],
        labels=candidates.labels[kept].astype(np.int32),
        boxes=boxes if profile.gives_boxes else np.zeros_like(boxes),
        areas=masks.areas[mask_of[kept]].astype(np.int32),
        queries=candidates.queries[kept].astype(np.int32),
        rle=_encoded(masks, rows) if settings.export_postprocess_mask else [b""] * len(rows),
        size_hw=ori_shape,
    )


def class_scores(cls_logits: Floats, background_label_id: int) -> Floats:
    """Softmax over the C+1 columns, no-object dropped: float32 [Q, C]."""
    exponent = np.exp(cls_logits - cls_logits.max(axis=1, keepdims=True))
    scores: Floats = exponent / exponent.sum(axis=1, keepdims=True)
    return scores[:, :-1] if background_label_id == -1 else scores[:, 1:]


def select(scores: Floats, settings: Settings, thresholds: Floats) -> Candidates:
    """Take the best query-class pairs, without those that can no longer reach the threshold of their class.

    A mask score is at most 1, so a class score below the threshold cannot pass it: dropping it here, before any
    mask work, changes nothing. What is dropped for its class alone still takes a place among the best.

    Args:
        scores: float32 [Q, C].
        settings: how many are taken.
        thresholds: float32 [C].

    Raises:
        InputError: more than MAX_CANDIDATES.
    """
    flat = scores.reshape(-1)
    order = np.flatnonzero(flat >= thresholds.min(initial=np.inf))
    if settings.pre_top_k != NO_LIMIT:
        order = _largest(flat, order, settings.pre_top_k)
    if PROFILES[settings.semantics].as_many_as_queries:
        order = _largest(flat, order, len(scores))
    if len(order) > MAX_CANDIDATES:
        raise InputError(
            f"an image has {len(order)} candidates; allowed are {MAX_CANDIDATES}: {_FEWER}", kind="output_too_large"
        )
    order = order[np.argsort(-flat[order], kind="stable")]
    queries, labels = np.divmod(order, scores.shape[1])
    passed = flat[order] >= thresholds[labels]
    return Candidates(flat[order][passed], labels[passed], queries[passed])


def keep(scores: Floats, labels: Ints, masks: Masks, mask_of: Ints, *, settings: Settings, thresholds: Floats) -> Ints:
    """Apply thresholds, NMS, the cap per class and the cap per image, in this order.

    Args:
        scores: float32 [N], final.
        labels: int64 [N].
        masks: of the candidates' queries.
        mask_of: int64 [N], which mask is each candidate's.
        settings: limits and semantics.
        thresholds: float32 [C].

    Returns:
        int64 [K], the candidates that stay, best first; equal scores stay in the order of the candidates.

    Raises:
        InputError: NMS or the cap per class would take too long.
    """
    passes = scores >= thresholds[labels]
    if PROFILES[settings.semantics].drops_empty:
        passes &= masks.areas[mask_of] > 0
    order = np.flatnonzero(passes)
    order = order[np.argsort(-scores[order], kind="stable")]
    limit = len(order) if settings.keep_top_k == NO_LIMIT else settings.keep_top_k
    if settings.iou_threshold >= 1 and settings.max_output_boxes_per_class == NO_LIMIT:
        return order[:limit]
    _check_comparisons(labels[order], mask_of[order], masks, compares=settings.iou_threshold < 1)
    kept: dict[int, list[int]] = {}  # masks by class
    passed: list[int] = []
    iou = cache(masks.iou)  # the same two masks meet in many classes
    for candidate, mask, label in zip(order.tolist(), mask_of[order].tolist(), labels[order].tolist(), strict=True):
        same_class = kept.setdefault(label, [])
        if _may_join(mask, same_class, iou, settings):
            same_class.append(mask)
            passed.append(candidate)
            if len(passed) == limit:
                break
    return np.array(passed, np.int64)


def _thresholds(
    settings: Settings, class_names: tuple[str, ...], num_classes: int, thing_classes: frozenset[int] | None
) -> Floats:
    """What the score of each class must reach, float32 [C]; infinity for a class that is not wanted."""
    thresholds = settings.thresholds(class_names, num_classes)
    things = thing_classes if PROFILES[settings.semantics].drops_stuff else None
    for wanted in (settings.class_indices(class_names, num_classes), things):
        if wanted is not None:
            thresholds[[label not in wanted for label in range(num_classes)]] = np.inf
    return thresholds


def _sample_by_grid(
    mask_logits: Floats,
    queries: Ints,
    *,
    grid: tuple[int, int],
    original: tuple[int, int],
    kernel: str | None,
    threads: int,
) -> Masks:
    """Sample masks at the image's size, copied from a grid, with the scores that they have on the grid."""
    cells = mask_logits.shape[1], mask_logits.shape[2]
    axes = list(zip(cells, grid, original, strict=True))
    to_grid = [bilinear_taps(c, g) for c, g, _ in axes]
    to_image = [grid_taps(cells=c, grid=g, original=o) for c, g, o in axes]
    on_grid, at_size = (
        MaskSampler.by_taps(*taps, cells=cells, kernel=kernel, threads=threads).sample(mask_logits, queries)
        for taps in (to_grid, to_image)
    )
    return replace(at_size, scores=on_grid.scores)


def _encoded(masks: Masks, rows: list[int]) -> list[bytes]:
    """The RLE of each row's mask; several classes of one query share it."""
    rle, num_bytes = {}, 0
    for row, times in Counter(rows).items():
        rle[row] = masks.rle(row)
        num_bytes += times * len(rle[row])
        check_bytes(num_bytes)  # before more is made
    return [rle[row] for row in rows]


def _check_comparisons(labels: Ints, mask_of: Ints, masks: Masks, *, compares: bool) -> None:
    """Refuse candidates, int64 [N] each, that would take some seconds to compare."""
    if len(labels) > MAX_COMPARED_CANDIDATES:
        raise InputError(
            f"an image has {len(labels)} candidates for 'iou_threshold' or 'max_output_boxes_per_class'; allowed are "
            f"{MAX_COMPARED_CANDIDATES}: {_FEWER}",
            kind="output_too_large",
        )
    if not compares or not len(labels):
        return
    in_classes = int(np.bincount(labels) @ np.bincount(labels, masks.num_edges[mask_of]))
    edges = min(in_classes, len(masks) * int(masks.num_edges.sum()))  # the same two masks are compared once
    if edges > MAX_COMPARED_EDGES:
        raise InputError(
            f"'iou_threshold' would compare masks at {edges} edges; allowed are {MAX_COMPARED_EDGES}: {_FEWER}",
            kind="output_too_large",
        )


def _may_join(mask: int, better: list[int], iou: Callable[[int, int], float], settings: Settings) -> bool:
    if len(better) == settings.max_output_boxes_per_class:
        return False
    if settings.iou_threshold >= 1:
        return True
    return all(iou(min(mask, other), max(mask, other)) <= settings.iou_threshold for other in better)


def _largest(values: Floats, indices: Ints, count: int) -> Ints:
    """Those of `indices` whose values are the `count` largest, the lowest of equal ones first; ascending."""
    if len(indices) <= count:
        return indices
    mine = values[indices]
    least = np.partition(mine, len(mine) - count)[len(mine) - count]
    above, equal = indices[mine > least], indices[mine == least]
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def check_logits(cls_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
    """Check the shapes of one image's logits; anybody may send some to a step.

    Args:
        cls_shape: (Q, C+1).
        mask_shape: (Q, h, w).

    Raises:
        InputError: they do not fit together, or are of more queries, classes or cells than there may be.
    """
    if len(cls_shape) != 2 or len(mask_shape) != 3 or cls_shape[0] != mask_shape[0]:
        raise InputError(
            f"logits do not fit together: cls_logits {cls_shape}, mask_logits {mask_shape}; "
            "expected [Q, C+1] and [Q, h, w]"
        )
    if not (1 <= cls_shape[0] <= MAX_QUERIES and 2 <= cls_shape[1] <= MAX_CLASSES + 1):
        raise InputError(
            f"cls_logits {cls_shape} must have from 1 to {MAX_QUERIES} queries, and columns for from 1 to "
            f"{MAX_CLASSES} classes and no-object"
        )
    if max(mask_shape[1:]) > MAX_SIDE:
        raise InputError(f"mask_logits {mask_shape} must have at most {MAX_SIDE} cells along a side")


def check_shapes(
    cls_logits: Floats, mask_logits: Floats, img_shape: tuple[int, int], ori_shape: tuple[int, int], mask_stride: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the mask cells (h, w) and the padded network input (H, W) they stand for.

    Raises:
        InputError: the shapes do not fit together, or are of more than there may be.
    """
    check_logits(cls_logits.shape, mask_logits.shape)
    height, width = mask_logits.shape[1:]
    padded = (height * mask_stride, width * mask_stride)
    if not all(1 <= valid <= size for valid, size in zip(img_shape, padded, strict=True)):
        raise InputError(f"img_shape {tuple(img_shape)} must lie within 1 x 1 and the network input's {padded}")
    if not all(1 <= side <= MAX_SIDE for side in ori_shape):
        raise InputError(f"ori_shape {tuple(ori_shape)} must lie within 1 x 1 and {MAX_SIDE} x {MAX_SIDE}")
    return (height, width), padded
