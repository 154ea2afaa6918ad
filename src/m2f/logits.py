"""The engine's answer for one image, checked."""

from __future__ import annotations

import numpy as np

from m2f.errors import InputError
from m2f.geometry import Floats, Halves, ImageGeometry, SizeHW
from m2f.limits import MAX_CLASSES, MAX_QUERIES, MAX_SIDE


class ImageLogits:
    """The logits of one image and its sizes, which fit together.

    Args:
        cls_logits: float32 or float16 [Q, C+1].
        mask_logits: float32 or float16 [Q, h, w], not upsampled.
        img_shape: (height, width) of the image inside the padded network input.
        ori_shape: (height, width) of the original image.
        mask_stride: network-input pixels per mask cell along each axis.

    Attributes:
        cls_logits: float32 [Q, C+1].
        mask_logits: as given; `half.of_queries` converts what a step reads.
        geometry: the sizes that the mask logits pass through.

    Raises:
        InputError: the shapes do not fit together, or exceed a limit.
    """

    def __init__(
        self,
        cls_logits: Floats | Halves,
        mask_logits: Floats | Halves,
        *,
        img_shape: SizeHW,
        ori_shape: SizeHW,
        mask_stride: int = 4,
    ) -> None:
        _check(cls_logits.shape, mask_logits.shape)
        self.cls_logits: Floats = cls_logits.astype(np.float32, copy=False)
        self.mask_logits = mask_logits
        height, width = mask_logits.shape[1:]
        self.geometry = ImageGeometry.of(
            (height, width), img_shape=img_shape, ori_shape=ori_shape, mask_stride=mask_stride
        )

    @property
    def num_classes(self) -> int:
        """C, the number of classes without no-object."""
        return self.cls_logits.shape[1] - 1

    def class_scores(self, background_label_id: int) -> Floats:
        """Return the softmax over the C+1 columns without no-object: float32 [Q, C].

        Args:
            background_label_id: -1: no-object is the last column; 0: the first.
        """
        scores = softmax(self.cls_logits)
        return scores[:, :-1] if background_label_id == -1 else scores[:, 1:]


def softmax(logits: Floats) -> Floats:
    """Return the softmax of each row: float32 [Q, C+1]."""
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: Floats = exponent / exponent.sum(axis=1, keepdims=True)
    return scores


def _check(cls_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
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
