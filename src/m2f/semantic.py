"""Turn logits into a class for each pixel.

Source: `semantic_inference` of facebookresearch/Mask2Former (mask2former/maskformer_model.py); mmdetection 3.3 has
none. The logits are resized to the image before they are combined. mmdetection does so, and Mask2Former if instances or
panoptic segments are asked for, too. Mask2Former asked for semantics alone, and Hugging Face's
`post_process_semantic_segmentation` (by way of 384 x 384), resize the combined scores instead.
"""

from __future__ import annotations

import numpy as np

from m2f.kernels import BEST, Kernel
from m2f.label_maps import LabelMap, probability_blocks
from m2f.logits import ImageLogits
from m2f.settings import Settings

NO_CLASS = -1  # a pixel beyond the image, in a batch of several sizes

_BLOCK_VALUES = 1 << 21  # float32 values of a block: 8 MB for all queries, and 8 MB for all classes
_PRODUCTS = 64  # products of a class and a mask probability that take as long as one mask probability


def values_per_pixel(queries: int, classes: int) -> int:
    """Return the work for a pixel, in values of about 4 ns: its masks, its classes, or the product of both."""
    return max(queries, classes, queries * classes // _PRODUCTS)


def semantic(image: ImageLogits, settings: Settings, *, kernel: Kernel = BEST) -> LabelMap:
    """Return the class index of each pixel, int32 [H, W]; no pixel is void.

    A pixel's class has the largest sum over queries of class probability x mask probability; the first among equals.

    Args:
        image: logits of the image; NaN in `mask_logits` counts as far outside.
        settings: `background_label_id`; the others are for instances and panoptic segments.
        kernel: computes the mask probabilities.
    """
    scores = image.class_scores(settings.background_label_id)  # [Q, C]
    classes = np.empty(image.geometry.original, np.int32)
    blocks = probability_blocks(image, np.arange(len(scores)), kernel, max_values=_BLOCK_VALUES)
    for rows, probabilities in blocks:
        found, pixels = classes[rows].reshape(-1), probabilities.reshape(len(scores), -1).T
        step = max(1, _BLOCK_VALUES // scores.shape[1])
        for begin in range(0, len(found), step):  # [step, C]: the classes of a pixel side by side for argmax
            found[begin : begin + step] = (pixels[begin : begin + step] @ scores).argmax(axis=1)
    return classes
