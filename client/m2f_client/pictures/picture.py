"""What a picture is to the code that cuts it into tiles, and pictures whose pixels are in memory."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from m2f.runs import Rect
from m2f_client.pictures.geo import Geo

Pixels = npt.NDArray[np.uint8]
"""uint8 [h, w, 3] RGB, or [h, w] grey."""

MAX_SIDE = (1 << 22) - 1
"""Longest side of a picture in pixels: RLE counts pixels below 2^44, and boxes in float32 are exact up to 2^24."""

_BAND_BYTES = 1 << 22  # of the pixels that are read at once to be reduced; their sums take eight times as much


class Picture(Protocol):
    """A picture of which any part can be read. A context manager; safe to share between threads."""

    @property
    def height(self) -> int:
        """Number of rows of pixels."""

    @property
    def width(self) -> int:
        """Number of columns of pixels."""

    @property
    def geo(self) -> Geo | None:
        """Where on earth the pixels are; None if the file does not say it."""

    def window(self, rect: Rect) -> Pixels:
        """Return the pixels of a part of the picture.

        Raises:
            UnreadableImage: this part of the file is damaged or missing; the message names the file.
        """

    def reduced(self, factor: int) -> Pixels:
        """Return the picture, `factor` times smaller: each pixel is the mean of a square of the picture's pixels.

        Its height is ceil(picture's height / factor). The squares at the right and lower edge may have fewer pixels.

        Raises:
            UnreadableImage: as `window`.
        """

    def close(self) -> None:
        """Close the file; a picture may be closed several times."""

    def __enter__(self) -> Picture:
        """Return the picture."""

    def __exit__(self, *_: object) -> None:
        """Close the file."""


class PictureInMemory:
    """A picture of pixels in memory.

    Args:
        pixels: uint8 [H, W, 3] RGB, or [H, W] grey.
    """

    geo = None

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def window(self, rect: Rect) -> Pixels:
        """Return the pixels of a part of the picture."""
        return np.ascontiguousarray(self._pixels[rect.y1 : rect.y2, rect.x1 : rect.x2])

    def reduced(self, factor: int) -> Pixels:
        """Return the picture, `factor` times smaller."""
        return reduced(self, factor)

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> PictureInMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reduced(picture: Picture, factor: int) -> Pixels:
    """Read a picture in bands of whole rows, and return it `factor` times smaller; see `Picture.reduced`."""
    if factor == 1:
        return picture.window(Rect(0, 0, picture.width, picture.height))
    rows = factor * max(1, _BAND_BYTES // (3 * factor * picture.width))
    bands = [
        _reduced(picture.window(Rect(0, top, picture.width, min(top + rows, picture.height))), factor)
        for top in range(0, picture.height, rows)
    ]
    return np.concatenate(bands)


def _reduced(pixels: Pixels, factor: int) -> Pixels:
    """Return the means of squares of pixels."""
    import cv2  # noqa: PLC0415 (slow)

    rows, columns = (_parts(side, factor) for side in pixels.shape[:2])
    return np.concatenate(
        [
            np.concatenate(
                [
                    cv2.resize(
                        pixels[y1:y2, x1:x2], (width, height), interpolation=cv2.INTER_AREA
                    )  # [h, w] or [h, w, 3]
                    for x1, x2, width in columns
                ],
                axis=1,
            )
            for y1, y2, height in rows
        ]
    )


def _parts(side: int, factor: int) -> list[tuple[int, int, int]]:
    """Return the part of a side that is whole squares and the rest: begin, end, and number of squares of each."""
    whole = side // factor
    parts = [(0, whole * factor, whole), (whole * factor, side, 1)]
    return [part for part in parts if part[0] < part[1]]
