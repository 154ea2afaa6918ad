"""Turn logits into a class for each pixel.

Source: `semantic_inference` of facebookresearch/Mask2Former (mask2former/maskformer_model.py); mmdetection 3.3 has
none. Two orders are in use, and `semantic_resize` chooses:

- `logits`: mask logits are resized to the image, then combined to class scores. So does mmdetection, and Mask2Former if
  instances or panoptic segments are asked for too.
- `scores`: logits are combined at the size of the network's input, and class scores are resized to the image. So do
  MMSegmentation (`EncoderDecoder.postprocess_result`), and Mask2Former and MaskFormer asked for semantics alone.

Hugging Face's `post_process_semantic_segmentation` resizes scores by way of 384 x 384, which is not reproduced.
"""

from __future__ import annotations

import numpy as np

from m2f.geometry import Floats, ImageGeometry, SizeHW, Taps, bilinear_taps
from m2f.half import of_queries
from m2f.kernels import BEST, Kernel
from m2f.label_maps import LabelMap, probability_blocks
from m2f.logits import ImageLogits
from m2f.settings import Settings

NO_CLASS = -1  # a pixel beyond the image, in a batch of several sizes

_BLOCK_VALUES = 1 << 21  # float32 values of a block: 8 MB for all queries, and 8 MB for all classes
_MAX_ROWS = 64  # of a block
_COPIES = 4  # of the scores of a block, between rows and columns
_PRODUCTS = 64  # products of a class and a mask probability that take as long as one mask probability


def values_per_pixel(queries: int, classes: int) -> int:
    """Return the work for a pixel, in values of about 4 ns: its masks, its classes, or the product of both."""
    return max(queries, classes, queries * classes // _PRODUCTS)


def semantic(image: ImageLogits, settings: Settings, *, kernel: Kernel = BEST) -> LabelMap:
    """Return the class index of each pixel, int32 [H, W]; no pixel is void.

    A pixel's class has the largest sum over queries of class probability x mask probability; the first among equals.

    Args:
        image: logits of the image; NaN in `mask_logits` counts as far outside.
        settings: `semantic_resize` and `background_label_id`; the others are for instances and panoptic segments.
        kernel: computes the mask probabilities.
    """
    if settings.semantic_resize == "scores":
        return _of_resized_scores(image, settings, kernel)
    scores = image.class_scores(settings.background_label_id)  # [Q, C]
    classes = np.empty(image.geometry.original, np.int32)
    blocks = probability_blocks(image, np.arange(len(scores)), kernel, max_values=_BLOCK_VALUES)
    for rows, probabilities in blocks:
        found, pixels = classes[rows].reshape(-1), probabilities.reshape(len(scores), -1).T
        step = max(1, _BLOCK_VALUES // scores.shape[1])
        for begin in range(0, len(found), step):  # [step, C]: the classes of a pixel side by side for argmax
            found[begin : begin + step] = (pixels[begin : begin + step] @ scores).argmax(axis=1)
    return classes


def _of_resized_scores(image: ImageLogits, settings: Settings, kernel: Kernel) -> LabelMap:
    """Return the class of each pixel, its scores interpolated between pixels of the network's input."""
    scores = image.class_scores(settings.background_label_id)  # [Q, C]
    rows, columns = (bilinear_taps(axis.valid, axis.original) for axis in image.geometry)
    height, width = image.geometry.original
    inside = ImageGeometry(*(axis._replace(original=axis.valid) for axis in image.geometry))
    operator = kernel.operator(inside)
    mask_logits, queries = of_queries(image.mask_logits, np.arange(len(scores)), kernel)
    row_step, column_step = _steps(image.geometry, *scores.shape)
    classes = np.empty((height, width), np.int32)
    for top in range(0, height, row_step):
        block = slice(top, min(top + row_step, height))
        across, first, last = _part(rows, block)
        probabilities = operator.probabilities(mask_logits, queries, slice(first, last)).transpose(1, 2, 0)  # [h, w, Q]
        for left in range(0, width, column_step):
            part = slice(left, min(left + column_step, width))
            along, begin, end = _part(columns, part)
            found = probabilities[:, begin:end] @ scores  # [h, w, C]
            classes[block, part] = _interpolated(_interpolated(found, across, 0), along, 1).argmax(axis=2)
    return classes


def _steps(geometry: ImageGeometry, queries: int, classes: int) -> SizeHW:
    """Return the rows and columns of the image that are computed at a time, so that memory is bounded."""
    rows, columns = geometry
    denser = max(1, rows.valid // rows.original)  # rows of the network's input for a row of the image
    row_step = min(max(1, _BLOCK_VALUES // (queries * columns.valid * denser)), _MAX_ROWS)
    denser *= max(1, columns.valid // columns.original)
    return row_step, max(1, _BLOCK_VALUES // (_COPIES * classes * row_step * denser))


def _part(taps: Taps, block: slice) -> tuple[Taps, int, int]:
    """Return the taps of some outputs, and the half-open range of the inputs that they read and are counted from."""
    source = taps.source[:, block]
    first, last = int(source[0, 0]), int(source[-1, -1]) + 1
    return Taps(source - first, taps.weight[:, block]), first, last


def _interpolated(values: Floats, taps: Taps, axis: int) -> Floats:
    """Interpolate [h, w, C] along an axis."""
    shape = [1, 1, 1]
    shape[axis] = -1
    low, high = (values.take(source, axis) for source in taps.source)
    low *= taps.weight[0].reshape(shape)
    high *= taps.weight[1].reshape(shape)
    low += high
    return low
