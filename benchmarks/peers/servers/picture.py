"""From a file to the network's input, and from logits to instances, with OpenCV and pycocotools alone.

What a good engineer writes around Mask2Former's ONNX without m2f: a candidate is dropped by its class score before any
mask is resized. mmdetection resizes all 100.
"""

import os

import cv2
import numpy as np
from pycocotools import mask as coco

SIDE = int(os.environ.get("SIDE", "256"))  # of the network's square input
PADDING = (124, 116, 104)  # RGB: the mean that the graph subtracts
THRESHOLD, TOP_K = 0.5, 100
cv2.setNumThreads(1)  # requests share the cores, not the rows of one picture


def preprocess(encoded):
    """Decode, resize and pad: uint8 [1, SIDE, SIDE, 3] RGB, the size inside the padding, and the original size."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    inner = int(height * scale + 0.5), int(width * scale + 0.5)
    batch = np.full((1, SIDE, SIDE, 3), PADDING, np.uint8)
    batch[0, : inner[0], : inner[1]] = cv2.resize(image, inner[::-1])[..., ::-1]
    return batch, inner, (height, width)


def candidates(cls_logits):
    """Return (score, query, label) of the best class scores that pass the threshold, best first."""
    exponent = np.exp(cls_logits - cls_logits.max(axis=1, keepdims=True))
    scores = (exponent / exponent.sum(axis=1, keepdims=True))[:, :-1]
    best = np.argsort(-scores, axis=None)[:TOP_K]
    rows = zip(*np.unravel_index(best, scores.shape), strict=True)
    return [(float(scores[q, c]), int(q), int(c)) for q, c in rows if scores[q, c] >= THRESHOLD]


def instances(cls_logits, mask_logits, inner, size):
    """Yield (label, score, mask) of each instance; the mask is bool [H, W] of the original picture."""
    for class_score, query, label in candidates(cls_logits):
        logits = cv2.resize(mask_logits[query], (SIDE, SIDE))[: inner[0], : inner[1]]
        logits = cv2.resize(logits, size[::-1])
        mask = logits > 0
        score = class_score * float((1 / (1 + np.exp(-logits[mask]))).sum() / (mask.sum() + 1e-6))
        if score >= THRESHOLD:
            yield label, score, mask


def answer(found, size):
    """Return what is sent: labels, scores, boxes (x1 y1 x2 y2, half-open) and masks as COCO's compressed RLE."""
    labels, scores, masks = zip(*found, strict=True) if found else ((), (), ())
    rles = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (coco.toBbox(rle).tolist() for rle in rles)]
    counts = [rle["counts"].decode() for rle in rles]
    return {"labels": labels, "scores": scores, "boxes": boxes, "counts": counts, "size": size}


def predict(encoded, engine):
    """Answer for an encoded picture; `engine` turns a batch into cls_logits and mask_logits."""
    batch, inner, size = preprocess(encoded)
    cls_logits, mask_logits = engine(batch)
    return answer(list(instances(cls_logits[0], mask_logits[0], inner, size)), size)
