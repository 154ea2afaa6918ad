"""The picture on the page, drawn at screen size: that takes half the time, and keeps the labels readable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2f_client.converters.draw import open_upright, overlay
from m2f_client.images import encoded
from m2f_client.result import Result

MAX_SIDE = 1600
"""Pixels of the longer side; a phone's photograph has 4000."""


def draw(path: Path, result: Result, class_names: Sequence[str] | None) -> Image.Image:
    """Return the image in a file with its instances drawn on it, at most `MAX_SIDE` pixels a side.

    Raises:
        UnreadableImage: the file cannot be read or decoded.
    """
    image = open_upright(encoded(path))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return overlay(image, scaled(result, image.size), class_names)


def scaled(result: Result, size: tuple[int, int]) -> Result:
    """Return the instances scaled to another image size.

    Args:
        result: needs `scores`, `labels`, `boxes`, `rle` and `size`.
        size: width and height of the scaled image.
    """
    height, width = result.size
    if size == (width, height):
        return result
    masks = [_resized(result.mask(index), size) for index in range(len(result))]
    corners = result.boxes.reshape(-1, 2, 2) * (np.array(size) / (width, height))  # [K, 2, 2]
    boxes = np.concatenate([np.floor(corners[:, 0]), np.ceil(corners[:, 1])], axis=1)  # never empty
    return Result(
        {
            **result.outputs,
            "boxes": boxes.astype(np.float32),
            "masks": np.stack(masks) if masks else np.zeros((0, size[1], size[0]), np.uint8),
            "size": np.array(size[::-1], np.int32),
        }
    )


def _resized(mask: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
