"""Handle several images in one request: take them apart, and stack their results with padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from m2f.errors import EngineError, InputError, of_image
from m2f.geometry import Floats
from m2f.kernels import BEST, Kernel
from m2f.limits import MAX_INSTANCES, MAX_MASK_BYTES, MAX_PIXELS, MAX_SIDE, MAX_WORK
from m2f.logits import ImageLogits
from m2f.postprocess import Instances
from m2f.rle import check_bytes, decode_into, packed_width

NO_LABEL = -1

T = TypeVar("T")


def stack_instances(images: Sequence[Instances], *, max_instances: int = MAX_INSTANCES) -> dict[str, npt.NDArray[Any]]:
    """Stack the instances of N images into the structured outputs of the contract, batch dimension first.

    Rows beyond an image's own are padding: score 0, label -1, empty RLE. `num_instances` counts the others.

    Raises:
        InputError: an image has more than `max_instances`, or the RLE of all images exceeds MAX_RLE_BYTES.
    """
    rows = max(len(image.scores) for image in images)
    if rows > max_instances:
        raise InputError(
            f"an image has {rows} instances; allowed are {max_instances}: raise 'score_threshold', or set 'keep_top_k'",
            kind="output_too_large",
        )
    check_bytes(sum(len(counts) for image in images for counts in image.rle))
    return {
        "num_instances": np.array([[len(image.scores)] for image in images], np.int32),
        "scores": _padded([image.scores for image in images], rows, 0),
        "labels": _padded([image.labels for image in images], rows, NO_LABEL),
        "boxes": _padded([image.boxes for image in images], rows, 0),
        "areas": _padded([image.areas for image in images], rows, 0),
        "queries": _padded([image.queries for image in images], rows, NO_LABEL),
        "rle": _padded([_objects(image.rle) for image in images], rows, b""),
        "size": np.array([image.size_hw for image in images], np.int32),
    }


def dense_masks(
    rle: npt.NDArray[np.object_],
    size: npt.NDArray[np.int32],
    *,
    packed: bool = False,
    max_bytes: int = MAX_MASK_BYTES,
    kernel: Kernel = BEST,
) -> npt.NDArray[np.uint8]:
    """Decode the RLE [N, K] of N images of size [N, 2] to masks of the largest H and W.

    Args:
        rle: COCO `counts`; an empty string (a padded row) becomes an empty mask. If all are empty, K becomes 0.
        size: (height, width) of each image.
        packed: one bit a pixel in place of one byte: see `rle.decode`.
        max_bytes: most bytes of all masks together.
        kernel: decodes the RLE.

    Returns:
        0/1 uint8 [N, K, H, W]; packed: uint8 [N, K, H, ceil(W / 8)].

    Raises:
        InputError: a size that no image can have, a string that is not the RLE of a mask of its size, or masks that
            would take more than `max_bytes`.
    """
    _check_sizes(size)
    images, rows = rle.shape
    if not any(counts for counts in rle.flat):
        rows = 0
    height, width = size.max(axis=0).tolist()
    shape = (images, rows, height, packed_width(width) if packed else width)
    if (num_bytes := math.prod(shape)) > max_bytes:
        name, other = ("packed_masks", "") if packed else ("masks", "'packed_masks', or ")
        raise InputError(
            f"'{name}' would take {num_bytes} bytes ({' x '.join(map(str, shape))}); allowed are "
            f"{max_bytes}: ask for {other}'rle' instead, or for fewer instances",
            kind="output_too_large",
        )
    masks = np.zeros(shape, np.uint8)
    for image, (image_height, image_width) in enumerate(size.tolist()):
        for row in range(rows):
            if rle[image, row]:
                decode_into(masks[image, row], rle[image, row], image_height, image_width, packed=packed, kernel=kernel)
    return masks


def of_each_image(
    arrays: Mapping[str, npt.NDArray[Any]],
    work: Callable[[ImageLogits], T],
    *,
    mask_stride: int = 4,
    max_pixels: int = MAX_PIXELS,
    values: Callable[[int, int], int] = lambda queries, _classes: queries,
) -> list[T]:
    """Return the result of `work` for each image of a request.

    Args:
        arrays: `cls_logits` [N, Q, C+1], `mask_logits` [N, Q, h, w], `img_shape` and `ori_shape` [N, 2].
        work: function of the logits of one image.
        mask_stride: network-input pixels per mask cell along each axis.
        max_pixels: largest allowed width x height of an original image.
        values: number of values that `work` computes for a pixel, given Q and C; default: Q.

    Raises:
        InputError: shapes that do not fit together, an image that is too large, or more than MAX_WORK values for all
            images together. If there are several images, the message says which.
        EngineError: class logits without a softmax.
    """
    for name in ("img_shape", "ori_shape"):
        if arrays[name].ndim != 2 or arrays[name].shape[1] != 2:
            raise InputError(f"{name} must have shape [N, 2] (height, width); got {list(arrays[name].shape)}")
    cls_logits, images = arrays["cls_logits"], []
    names = ("cls_logits", "mask_logits", "img_shape", "ori_shape")
    for index, (cls, mask, valid, original) in enumerate(zip(*(arrays[name] for name in names), strict=True)):
        with of_image(index, len(cls_logits)):
            sizes = {"img_shape": tuple(valid.tolist()), "ori_shape": tuple(original.tolist())}
            images.append(ImageLogits(cls, mask, **sizes, mask_stride=mask_stride))
            if math.prod(sizes["ori_shape"]) > max_pixels:
                raise InputError(f"ori_shape {sizes['ori_shape']} is too large; allowed are {max_pixels} pixels")
    pixels = sum(math.prod(image.geometry.original) for image in images)
    _check_work(pixels, values(cls_logits.shape[1], cls_logits.shape[2] - 1))
    _check_scores(cls_logits)
    results = []
    for index, image in enumerate(images):
        with of_image(index, len(images)):
            results.append(work(image))
    return results


def _check_sizes(size: npt.NDArray[np.int32]) -> None:
    for index, sides in enumerate(size.tolist()):
        with of_image(index, len(size)):
            if not all(1 <= side <= MAX_SIDE for side in sides):
                raise InputError(f"size {tuple(sides)} must lie within 1 x 1 and {MAX_SIDE} x {MAX_SIDE}")


def _check_work(pixels: int, values: int) -> None:
    if (work := pixels * values) > MAX_WORK:
        raise InputError(
            f"the request is too much work: {pixels} pixels of original images x {values} values = {work}; allowed are "
            f"{MAX_WORK}: send fewer images, or smaller ones",
            kind="output_too_large",
        )


def _check_scores(cls_logits: Floats) -> None:
    """Refuse logits whose softmax is NaN: NaN, infinity, and a query that is minus infinity in all columns."""
    if not np.isfinite(cls_logits.max(axis=-1)).all():
        raise EngineError(
            "cls_logits are not finite, so there are no scores: the input was not finite, or the engine overflows (an "
            "FP16 engine: export it with more layers in FP32)"
        )


def _objects(values: Sequence[bytes]) -> npt.NDArray[np.object_]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _padded(images: Sequence[npt.NDArray[Any]], rows: int, fill: object) -> npt.NDArray[Any]:
    if len(images) == 1:
        return images[0][None]
    stacked = np.full((len(images), rows, *images[0].shape[1:]), fill, images[0].dtype)
    for row, values in zip(stacked, images, strict=True):
        row[: len(values)] = values
    return stacked
