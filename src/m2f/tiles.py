"""A picture in overlapping tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2f.errors import InputError
from m2f.runs import Rect

MAX_TILES = 250_000
"""Largest number of tiles of a picture."""

_NEAR = 256  # part of a tile's side that counts as touching its edge


@dataclass(frozen=True)
class Tile:
    """A part of a picture that is one request.

    Attributes:
        rect: the part.
        own: the pixels of it that no other tile has farther from its edges; none if it is the picture as a whole,
            beside tiles.
        picture: the whole picture.
    """

    rect: Rect
    own: Rect
    picture: Rect

    def cuts(self, box: Rect) -> bool:
        """Return whether a box ends at an edge of the tile that has picture beyond it."""
        near_x, near_y = (max(1, side // _NEAR) for side in (self.rect.x2 - self.rect.x1, self.rect.y2 - self.rect.y1))
        return (
            (box.x1 < self.rect.x1 + near_x and self.rect.x1 > self.picture.x1)
            or (box.y1 < self.rect.y1 + near_y and self.rect.y1 > self.picture.y1)
            or (box.x2 > self.rect.x2 - near_x and self.rect.x2 < self.picture.x2)
            or (box.y2 > self.rect.y2 - near_y and self.rect.y2 < self.picture.y2)
        )


def grid(height: int, width: int, *, tile: int, overlap: float) -> list[Tile]:
    """Cut a picture into tiles of one size, row by row; neighbours overlap by at least a part of the side.

    Args:
        height: height of the picture in pixels.
        width: width of the picture in pixels.
        tile: side of a tile. A picture with a shorter side has tiles of that side.
        overlap: 0 to less than 1.

    Raises:
        InputError: there would be more than `MAX_TILES` tiles.
    """
    picture = Rect(0, 0, width, height)
    rows, columns = (_spans(length, tile, overlap) for length in (height, width))
    if len(rows) * len(columns) > MAX_TILES:
        raise InputError(
            f"{len(rows)} x {len(columns)} tiles are too many; allowed are {MAX_TILES}: larger tiles, or less overlap"
        )
    return [
        Tile(Rect(x[0], y[0], x[1], y[1]), Rect(x[2], y[2], x[3], y[3]), picture) for y in rows for x in columns
    ]  # fmt: skip


def _spans(length: int, tile: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Return begin and end of each tile along an axis, and begin and end of what is its own."""
    step = max(1, tile - int(np.ceil(tile * overlap)))
    count = 1 + max(0, -(-(length - tile) // step))
    begins = np.linspace(0, max(0, length - tile), count).round().astype(int).tolist()
    ends = [min(length, begin + tile) for begin in begins]
    seams = [(begin + end) // 2 for begin, end in zip(begins[1:], ends[:-1], strict=True)]
    return list(zip(begins, ends, [0, *seams], [*seams, length], strict=True))
