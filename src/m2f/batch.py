"""Several images in one request: rows padded to the largest, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.contract import MAX_MASK_BYTES, InputError
from m2f.geometry import Floats
from m2f.postprocess import Instances
from m2f.rle import decode_into, packed_width

NO_LABEL = -1


def stack_instances(images: Sequence[Instances]) -> dict[str, npt.NDArray[Any]]:
    """Stack N images' instances into the structured outputs of the contract, batch dimension first.

    Rows beyond an image's own are score 0, label -1, empty RLE; `num_instances` says how many count.
    """
    rows = max(len(image.scores) for image in images)
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
    rle: npt.NDArray[np.object_], size: npt.NDArray[np.int32], *, packed: bool = False
) -> npt.NDArray[np.uint8]:
    """Decode the RLE [N, K] of N images of size [N, 2] to masks of the largest H and W.

    Args:
        rle: COCO `counts`; empty strings (padded rows) stay empty masks, and where no mask was exported at all, K is 0.
        size: height and width of each image.
        packed: a bit a pixel, in place of a byte: see `rle.decode`.

    Returns:
        0/1 uint8 [N, K, H, W]; packed: uint8 [N, K, H, ceil(W / 8)].

    Raises:
        InputError: the masks would take more than `MAX_MASK_BYTES`.
    """
    images, rows = rle.shape
    if not any(counts for counts in rle.flat):
        rows = 0
    height, width = size.max(axis=0).tolist()
    shape = (images, rows, height, packed_width(width) if packed else width)
    if (num_bytes := math.prod(shape)) > MAX_MASK_BYTES:
        name, other = ("packed_masks", "") if packed else ("masks", "'packed_masks', or ")
        raise InputError(
            f"'{name}' would take {num_bytes} bytes ({' x '.join(map(str, shape))}); allowed are "
            f"{MAX_MASK_BYTES}: ask for {other}'rle' instead, or for fewer instances",
            kind="output_too_large",
        )
    masks = np.zeros(shape, np.uint8)
    for image, (image_height, image_width) in enumerate(size.tolist()):
        for row in range(rows):
            if rle[image, row]:
                decode_into(masks[image, row], rle[image, row], image_height, image_width, packed=packed)
    return masks


def images(arrays: Mapping[str, npt.NDArray[Any]]) -> list[tuple[list[Floats], dict[str, tuple[int, int]]]]:
    """Take a request's logits and sizes apart, image by image.

    Args:
        arrays: `cls_logits` [N, Q, C+1], `mask_logits` [N, Q, h, w], `img_shape` and `ori_shape` [N, 2].

    Returns:
        For each image its two logits, and its `img_shape` and `ori_shape` as (height, width).

    Raises:
        InputError: a shape tensor of another shape.
    """
    sizes = [[(name, size) for size in _sizes(name, arrays[name])] for name in ("img_shape", "ori_shape")]
    logits = zip(arrays["cls_logits"], arrays["mask_logits"], strict=True)
    return [(list(pair), dict(each)) for pair, *each in zip(logits, *sizes, strict=True)]


def _sizes(name: str, shapes: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
    if shapes.ndim != 2 or shapes.shape[1] != 2:
        raise InputError(f"{name} must have shape [N, 2] (height, width); got {list(shapes.shape)}")
    return [(height, width) for height, width in shapes.tolist()]


def _objects(values: Sequence[bytes]) -> npt.NDArray[np.object_]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _padded(images: Sequence[npt.NDArray[Any]], rows: int, fill: object) -> npt.NDArray[Any]:
    stacked = np.full((len(images), rows, *images[0].shape[1:]), fill, images[0].dtype)
    for row, values in zip(stacked, images, strict=True):
        row[: len(values)] = values
    return stacked
