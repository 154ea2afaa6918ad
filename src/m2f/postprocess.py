"""Logits in, instances out: mmdetection's Mask2Former semantics, with work only where it can matter.

Reference: `MaskFormerFusionHead.instance_postprocess` and `Mask2FormerHead.predict` of mmdetection 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m2f.contract import MAX_SIDE, InputError
from m2f.geometry import Floats
from m2f.masks import MaskSampler, RunMask
from m2f.settings import NO_LIMIT, Settings


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
    labels: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]


class Scored(NamedTuple):
    """A candidate with its mask and its final score."""

    score: np.float32
    label: int
    query: int
    mask: RunMask


def postprocess(
    cls_logits: Floats,
    mask_logits: Floats,
    *,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    settings: Settings,
    class_names: tuple[str, ...] = (),
    mask_stride: int = 4,
) -> Instances:
    """Turn one image's logits into scored instances.

    Args:
        cls_logits: float32 [Q, C+1].
        mask_logits: float32 [Q, h, w], not upsampled.
        img_shape: height and width of the image inside the padded network input.
        ori_shape: height and width of the original image.
        settings: thresholds and limits.
        class_names: names that `settings.classes` may use.
        mask_stride: network-input pixels per mask cell along each axis.

    Raises:
        InputError: shapes that do not fit together, or a class that does not exist.
    """
    cells, padded = _check_shapes(cls_logits, mask_logits, img_shape, ori_shape, mask_stride)
    wanted = settings.class_indices(class_names, cls_logits.shape[1] - 1)
    candidates = select(class_scores(cls_logits, settings.background_label_id), settings, wanted)
    sampler = MaskSampler(cells=cells, padded=padded, valid=img_shape, original=ori_shape)
    scored = _score(candidates, mask_logits, sampler)
    kept = keep(scored, settings)
    return _pack(kept, ori_shape, with_masks=settings.export_postprocess_mask)


def class_scores(cls_logits: Floats, background_label_id: int) -> Floats:
    """Softmax over the C+1 columns, no-object dropped: float32 [Q, C]."""
    exponent = np.exp(cls_logits - cls_logits.max(axis=1, keepdims=True))
    scores: Floats = exponent / exponent.sum(axis=1, keepdims=True)
    return scores[:, :-1] if background_label_id == -1 else scores[:, 1:]


def select(scores: Floats, settings: Settings, wanted: frozenset[int] | None = None) -> Candidates:
    """Take the best `pre_top_k` query-class pairs, without those that can no longer reach the threshold.

    A mask score is at most 1, so a class score below `score_threshold` cannot pass it: dropping it here,
    before any mask work, changes nothing.
    """
    flat = scores.reshape(-1)
    order = np.flatnonzero(flat >= np.float32(settings.score_threshold))
    order = order[np.argsort(-flat[order], kind="stable")]
    if settings.pre_top_k != NO_LIMIT:
        order = order[: settings.pre_top_k]
    queries, labels = np.divmod(order, scores.shape[1])
    if wanted is not None:
        mine = np.isin(labels, list(wanted))
        order, queries, labels = order[mine], queries[mine], labels[mine]
    return Candidates(flat[order], labels, queries)


def keep(scored: list[Scored], settings: Settings) -> list[Scored]:
    """Apply threshold, NMS, the cap per class and the cap per image, in this order; best first."""
    passed = [s for s in scored if s.score >= np.float32(settings.score_threshold)]
    passed.sort(key=lambda s: -s.score)  # stable: equal scores stay in candidate order
    kept: list[Scored] = []
    for candidate in passed:
        if _may_join(candidate, [k for k in kept if k.label == candidate.label], settings):
            kept.append(candidate)
            if len(kept) == settings.keep_top_k:
                break
    return kept


def _may_join(candidate: Scored, same_class: list[Scored], settings: Settings) -> bool:
    if len(same_class) == settings.max_output_boxes_per_class:
        return False
    if settings.iou_threshold >= 1:
        return True
    return all(candidate.mask.iou(better.mask) <= settings.iou_threshold for better in same_class)


def _score(candidates: Candidates, mask_logits: Floats, sampler: MaskSampler) -> list[Scored]:
    masks = {query: sampler.sample(mask_logits[query]) for query in _unique(candidates.queries)}
    return [
        Scored(np.float32(score * np.float32(masks[query].score)), int(label), int(query), masks[query])
        for score, label, query in zip(*candidates, strict=True)
    ]


def _unique(queries: npt.NDArray[np.int64]) -> Iterable[int]:
    return dict.fromkeys(queries.tolist())


def _pack(kept: list[Scored], size_hw: tuple[int, int], *, with_masks: bool) -> Instances:
    return Instances(
        scores=np.array([s.score for s in kept], np.float32),
        labels=np.array([s.label for s in kept], np.int32),
        boxes=np.array([s.mask.box for s in kept], np.float32).reshape(-1, 4),
        areas=np.array([s.mask.area for s in kept], np.int32),
        queries=np.array([s.query for s in kept], np.int32),
        rle=[s.mask.to_rle() if with_masks else b"" for s in kept],
        size_hw=size_hw,
    )


def _check_shapes(
    cls_logits: Floats, mask_logits: Floats, img_shape: tuple[int, int], ori_shape: tuple[int, int], mask_stride: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the mask cells (h, w) and the padded network input (H, W) they stand for."""
    if cls_logits.ndim != 2 or mask_logits.ndim != 3 or cls_logits.shape[0] != mask_logits.shape[0]:
        raise InputError(
            f"logits do not fit together: cls_logits {cls_logits.shape}, mask_logits {mask_logits.shape}; "
            "expected [Q, C+1] and [Q, h, w]"
        )
    height, width = mask_logits.shape[1:]
    padded = (height * mask_stride, width * mask_stride)
    if not all(1 <= valid <= size for valid, size in zip(img_shape, padded, strict=True)):
        raise InputError(f"img_shape {tuple(img_shape)} must lie within 1 x 1 and the network input's {padded}")
    if not all(1 <= side <= MAX_SIDE for side in ori_shape):
        raise InputError(f"ori_shape {tuple(ori_shape)} must lie within 1 x 1 and {MAX_SIDE} x {MAX_SIDE}")
    return (height, width), padded
