"""The slow, obvious post-processing: every mask at full size in float64. What the fast one is held against."""

import numpy as np


def bilinear(image, height, width):
    """`align_corners=False` bilinear resize of [..., h, w] to [..., height, width], in float64."""
    return resize_axis(resize_axis(image.astype(np.float64), height, -2), width, -1)


def resize_axis(image, size, axis):
    """Resize one axis, straight from the definition."""
    length = image.shape[axis]
    centre = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, None)
    low = np.minimum(np.floor(centre).astype(int), length - 1)
    high = np.minimum(low + 1, length - 1)
    shape = [1] * image.ndim
    shape[axis] = size
    fraction = (centre - low).reshape(shape)
    return np.take(image, low, axis) * (1 - fraction) + np.take(image, high, axis) * fraction


def full_size_logits(mask_logits, img_shape, ori_shape, stride=4):
    """[Q, h, w] -> [Q, H, W] at the original image's size."""
    padded = bilinear(mask_logits, mask_logits.shape[1] * stride, mask_logits.shape[2] * stride)
    return bilinear(padded[:, : img_shape[0], : img_shape[1]], *ori_shape)


def softmax(logits):
    exponent = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def instances(cls_logits, mask_logits, *, img_shape, ori_shape, threshold=0.0, top_k=100, stride=4):
    """mmdetection's instance_postprocess, candidate by candidate; rows of a dict each, best first."""
    scores = softmax(cls_logits)[:, :-1]
    candidates = sorted(np.ndindex(scores.shape), key=lambda pair: -scores[pair])[:top_k]
    logits = full_size_logits(mask_logits, img_shape, ori_shape, stride)
    rows = []
    for query, label in candidates:
        mask = logits[query] > 0
        mask_score = (1 / (1 + np.exp(-logits[query][mask]))).sum() / (mask.sum() + 1e-6)
        score = scores[query, label] * mask_score
        if score >= threshold:
            rows.append({"query": query, "label": label, "score": score, "mask": mask, "box": box(mask)})
    return sorted(rows, key=lambda row: -row["score"])


def box(mask):
    """x1 y1 x2 y2, half-open; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
