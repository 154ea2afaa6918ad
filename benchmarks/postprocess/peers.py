"""How others do it: the same logits through each one's own code, a function each.

Every way ends in `Found`, its masks as COCO RLE by pycocotools: as whoever stores or sends them needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco
from torch.nn.functional import interpolate, softmax
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

from .scenes import STRIDE, Case

ensure_mmcv_ops()

from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402


class Found(NamedTuple):
    """What a way answers, in its own order.

    Attributes:
        scores: float32 [K].
        labels: int [K].
        boxes: [K, 4] x1 y1 x2 y2; None where a way gives none.
        rle: K COCO compressed `counts`.
    """

    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.integer]
    boxes: npt.NDArray[np.generic] | None
    rle: list[bytes]


Way = Callable[[Case], Found]


def mmdet(case: Case) -> Found:
    """`Mask2FormerHead.predict` and `MaskFormerFusionHead.predict` of mmdetection 3.3: every detection has its mask.

    A network gives the upsampling its logits; here it stands as in `maskformer_head.py`.
    """
    result = _mmdet_instances(case)
    return Found(result.scores.numpy(), result.labels.numpy(), result.bboxes.numpy(), encode(result.masks.numpy()))


def mmdet_kept(case: Case) -> Found:
    """The same, but only what passes the threshold is encoded, which mmdetection leaves to its caller."""
    result = _mmdet_instances(case)
    result = result[result.scores >= case.settings.score_threshold]
    return Found(result.scores.numpy(), result.labels.numpy(), result.bboxes.numpy(), encode(result.masks.numpy()))


@torch.inference_mode()
def _mmdet_instances(case: Case):  # type: ignore[no-untyped-def]  # mmengine's InstanceData
    classes = case.cls_logits.shape[1] - 1
    top_k = min(case.settings.pre_top_k, case.cls_logits.shape[0] * classes)
    config = ConfigDict(instance_on=True, semantic_on=False, panoptic_on=False, max_per_image=top_k)
    head = MaskFormerFusionHead(num_things_classes=classes, num_stuff_classes=0, test_cfg=config)
    sample = DetDataSample(metainfo=case.shapes)
    masks = interpolate(_batch(case.mask_logits), size=case.padded, mode="bilinear", align_corners=False)
    return head.predict(_batch(case.cls_logits), masks, [sample], rescale=True)[0]["ins_results"]


@torch.inference_mode()
def detectron2(case: Case) -> Found:
    """Mask2Former's own code on detectron2, transcribed: it gives no boxes.

    `MaskFormer.forward` and `instance_inference` in mask2former/maskformer_model.py (facebookresearch/Mask2Former,
    161be51), `sem_seg_postprocess` in detectron2/modeling/postprocessing.py.
    """
    masks = interpolate(_batch(case.mask_logits), size=case.padded, mode="bilinear", align_corners=False)
    height, width = case.img_shape
    masks = interpolate(masks[:, :, :height, :width], size=case.ori_shape, mode="bilinear", align_corners=False)[0]
    class_scores = softmax(torch.from_numpy(case.cls_logits), dim=-1)[:, :-1]
    queries, classes = class_scores.shape
    scores, order = class_scores.flatten().topk(min(case.settings.pre_top_k, queries * classes), sorted=False)
    masks = masks[order // classes]
    inside = (masks > 0).float()
    mask_scores = (masks.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    return Found((scores * mask_scores).numpy(), (order % classes).numpy(), None, encode(inside.bool().numpy()))


_PROCESSOR = Mask2FormerImageProcessorPil()


@torch.inference_mode()
def huggingface(case: Case) -> Found:
    """`post_process_instance_segmentation` of transformers: not the same function.

    It resizes the logits to 384 x 384, the binary masks from there to the image by nearest neighbour, and knows no
    padding: it gets the cells that hold the image.
    """
    height, width = (-(-side // STRIDE) for side in case.img_shape)
    outputs = SimpleNamespace(
        class_queries_logits=_batch(case.cls_logits), masks_queries_logits=_batch(case.mask_logits[:, :height, :width])
    )
    result = _PROCESSOR.post_process_instance_segmentation(
        outputs, threshold=case.settings.score_threshold, target_sizes=[case.ori_shape], return_binary_maps=True
    )[0]
    segments = result["segments_info"]
    masks = result["segmentation"].bool().numpy() if segments else ()
    scores = np.array([segment["score"] for segment in segments], np.float32)
    return Found(scores, np.array([segment["label_id"] for segment in segments], np.int64), None, encode(masks))


def prune(case: Case) -> Found:
    """What a careful user writes: drop by class score first, then OpenCV mask by mask."""
    exponent = np.exp(case.cls_logits - case.cls_logits.max(axis=1, keepdims=True))
    class_scores = (exponent / exponent.sum(axis=1, keepdims=True))[:, :-1]
    order = np.argsort(-class_scores, axis=None)[: case.settings.pre_top_k]
    rows = []
    for query, label in zip(*np.unravel_index(order, class_scores.shape), strict=True):
        if class_scores[query, label] < case.settings.score_threshold:
            break
        logits = _resized(case, query)
        inside = logits > 0
        mask_score = (1 / (1 + np.exp(-logits[inside]))).sum() / (inside.sum() + 1e-6)
        rows.append((class_scores[query, label] * mask_score, label, _box(inside), encode([inside])[0]))
    scores, labels, boxes, rle = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Found(np.array(scores, np.float32), np.array(labels, np.int64), np.array(boxes).reshape(-1, 4), list(rle))


def _resized(case: Case, query: int) -> npt.NDArray[np.float32]:
    """One query's logits at the size of the image."""
    height, width = case.img_shape
    padded = cv2.resize(case.mask_logits[query], case.padded[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.resize(padded[:height, :width], case.ori_shape[::-1], interpolation=cv2.INTER_LINEAR)


def _box(inside: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)


def encode(masks: Iterable[npt.NDArray[np.bool_]]) -> list[bytes]:
    """Encode masks one by one, as mmdetection's `encode_mask_results` does."""
    return [coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"] for mask in masks]


def _batch(array: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(array)[None]


PEERS: dict[str, Way] = {
    "mmdet": mmdet,
    "mmdet, kept encoded": mmdet_kept,
    "detectron2": detectron2,
    "huggingface": huggingface,
    "prune + cv2": prune,
}
