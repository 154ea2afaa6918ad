"""The slow, obvious panoptic and semantic segmentation: every query at full size in float64.

Transcribed from `panoptic_inference` and `semantic_inference` of facebookresearch/Mask2Former
(mask2former/maskformer_model.py), which resizes the logits to the image first (`sem_seg_postprocess`).
"""

import numpy as np
from reference import full_size_logits, softmax


def sigmoid(logits):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits))


def mask_probabilities(mask_logits, img_shape, ori_shape, stride=4):
    """[Q, h, w] -> [Q, H, W]."""
    return sigmoid(full_size_logits(mask_logits, img_shape, ori_shape, stride))


def panoptic(cls_logits, masks, *, things, score_threshold=0.8, overlap_threshold=0.8):
    """(ids [H, W], segments_info) from cls_logits [Q, C+1] and mask probabilities [Q, H, W]."""
    probabilities = softmax(cls_logits)
    scores, labels = probabilities.max(-1), probabilities.argmax(-1)
    keep = (labels != cls_logits.shape[1] - 1) & (scores > score_threshold)
    scores, labels, masks = scores[keep], labels[keep], masks[keep]
    ids, segments = np.zeros(masks.shape[1:], int), []
    if not len(masks):
        return ids, segments
    winner = (scores[:, None, None] * masks).argmax(0)
    stuff = {}
    for k, label in enumerate(labels.tolist()):
        won, inside = (winner == k).sum(), (masks[k] >= 0.5).sum()
        mask = (winner == k) & (masks[k] >= 0.5)
        if not (won > 0 and inside > 0 and mask.sum() > 0) or won / inside < overlap_threshold:
            continue
        if label not in things:
            if label in stuff:
                ids[mask] = stuff[label]
                continue
            stuff[label] = len(segments) + 1
        ids[mask] = len(segments) + 1
        segments.append({"id": len(segments) + 1, "isthing": label in things, "category_id": label})
    return ids, segments


def semantic_scores(cls_logits, masks):
    """[C, H, W] from cls_logits [Q, C+1] and mask probabilities [Q, H, W]."""
    return np.einsum("qc,qhw->chw", softmax(cls_logits)[:, :-1], masks)
