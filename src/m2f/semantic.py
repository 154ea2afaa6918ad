"""Logits in, a class for each pixel out.

Source: `semantic_inference` of facebookresearch/Mask2Former (mask2former/maskformer_model.py); mmdetection 3.3 has
none. The logits are resized to the image before they are combined: mmdetection's geometry, and Mask2Former's where
instances or panoptic segments are asked for too. Mask2Former alone with semantics, and Hugging Face's
`post_process_semantic_segmentation` (by way of 384 x 384), resize the combined scores instead.
"""

from __future__ import annotations

import numpy as np

from m2f.geometry import Floats
from m2f.label_maps import LabelMap, MaskProbabilities
from m2f.postprocess import check_shapes, class_scores
from m2f.settings import Settings

NO_CLASS = -1  # a pixel beyond the image, in a batch of several sizes

_BLOCK_VALUES = 1 << 21  # float32 of a block: 8 MB for all its queries, and for all its classes
_PRODUCTS = 64  # of a class probability and a mask's that take as long as a mask's own


def values_a_pixel(queries: int, classes: int) -> int:
    """What a pixel costs, in values of about 4 ns: the masks', the classes', or the product that makes these."""
    return max(queries, classes, queries * classes // _PRODUCTS)


def semantic(
    cls_logits: Floats,
    mask_logits: Floats,
    *,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    settings: Settings,
    mask_stride: int = 4,
    kernel: str | None = None,
) -> LabelMap:
    """Return the class index of each pixel, int32 [H, W]; there is no void.

    The class with the largest sum over the queries of class probability x mask probability; the first among equals.

    Args:
        cls_logits: float32 [Q, C+1].
        mask_logits: float32 [Q, h, w], not upsampled. NaN counts as far outside.
        img_shape: height and width of the image inside the padded network input.
        ori_shape: height and width of the original image.
        settings: `background_label_id`; the others are for instances and panoptic segments.
        mask_stride: network-input pixels per mask cell along each axis.
        kernel: one of `native.kernels`; None: the best.

    Raises:
        InputError: shapes that do not fit together, or a kernel that does not exist.
    """
    _, padded = check_shapes(cls_logits, mask_logits, img_shape, ori_shape, mask_stride)
    scores = class_scores(cls_logits, settings.background_label_id)  # [Q, C]
    queries = np.arange(len(scores))
    masks = MaskProbabilities(mask_logits, queries, padded=padded, valid=img_shape, original=ori_shape, kernel=kernel)
    classes = np.empty(ori_shape, np.int32)
    for rows, probabilities in masks.blocks(_BLOCK_VALUES):
        found, pixels = classes[rows].reshape(-1), probabilities.reshape(len(scores), -1).T
        step = max(1, _BLOCK_VALUES // scores.shape[1])
        for begin in range(0, len(found), step):  # [step, C]: side by side for argmax
            found[begin : begin + step] = (pixels[begin : begin + step] @ scores).argmax(axis=1)
    return classes
