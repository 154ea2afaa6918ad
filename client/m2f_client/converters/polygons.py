"""Masks as polygons along the edges of their pixels, without rounding: the polygons hold the mask exactly.

Pixel (column x, row y) is the unit square from (x, y) to (x + 1, y + 1), as in `boxes`; its centre is at
(x + 0.5, y + 0.5). Filling the polygons by pixel centres restores the mask, and their area is its number of pixels.
`cv2.findContours` runs through the centres of the pixels instead, and so loses half a pixel on each side.

Pixels that meet only at a corner are separate polygons. No ring touches itself: a hole that touches the outside, or
another hole, at a corner is a ring of its own. So each polygon, and a multipolygon of all, is valid in the sense of
OGC's simple features (shapely's `is_valid`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.int32]

# Number of outline corners at a grid point, by which of the four pixels around the point are inside:
# north-west + 2 north-east + 4 south-west + 8 south-east.
_CORNERS = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0], np.uint8)
_ONLY_NORTH_EAST_AND_SOUTH_WEST = 6


class Polygon(NamedTuple):
    """One piece of a mask; `shapely.Polygon(*polygon)` accepts it.

    Attributes:
        exterior: int32 [N, 2], x y of each corner, the first not repeated. Its shoelace area is positive:
            counterclockwise where y points up (RFC 7946, shapely), clockwise on a screen, where y points down.
        holes: rings of the same form, in the opposite direction.
    """

    exterior: Points
    holes: tuple[Points, ...]


class _Edges(NamedTuple):
    """The E horizontal edges of a mask's outlines, directed so that, on a screen, the mask is on their right.

    Attributes:
        tails: int [E, 2], x y of the beginning of each edge.
        heads: int [E, 2], x y of the end of each edge.
        following: int [E], the next horizontal edge, after a vertical edge.
        pieces: int [E], the 4-connected piece of the mask that each edge bounds.
    """

    tails: npt.NDArray[np.int64]
    heads: npt.NDArray[np.int64]
    following: npt.NDArray[np.int64]
    pieces: npt.NDArray[np.int32]


def trace(mask: npt.NDArray[np.uint8]) -> list[Polygon]:
    """Return the polygons of a mask, one for each 4-connected piece, from top to bottom.

    Args:
        mask: uint8 [H, W] of 0 and 1.
    """
    left, top, width, height = cv2.boundingRect(mask)
    inside = np.pad(mask[top : top + height, left : left + width], 1)
    edges = _edges(inside)
    offset = np.array([left, top])
    exteriors: dict[int, Points] = {}
    holes: dict[int, list[Points]] = {}
    for piece, ring in _rings(edges):
        points = (ring + offset).astype(np.int32)
        if _shoelace(ring) > 0:
            exteriors[piece] = points
        else:
            holes.setdefault(piece, []).append(points)
    return [Polygon(exteriors[piece], tuple(holes.get(piece, ()))) for piece in sorted(exteriors)]


def _edges(inside: npt.NDArray[np.uint8]) -> _Edges:
    """Find the edges of a mask [h + 2, w + 2] with a border of zeros; x and y do not count the border."""
    around = inside[:-1, :-1] + 2 * inside[:-1, 1:] + 4 * inside[1:, :-1] + 8 * inside[1:, 1:]  # [h + 1, w + 1]
    rows, columns = np.nonzero(_CORNERS[around])
    times = _CORNERS[around[rows, columns]]
    rows, columns = np.repeat(rows, times), np.repeat(columns, times)  # [2 E], row by row
    lefts = np.arange(0, len(rows), 2)  # in a row, every other corner begins a horizontal edge, the next one ends it
    south = inside[rows[lefts] + 1, columns[lefts] + 1]  # 1 where the mask is below
    tails, heads = lefts + 1 - south, lefts + south
    corners = np.stack([columns, rows], axis=1)
    _, pieces = cv2.connectedComponents(inside, connectivity=4)
    return _Edges(
        tails=corners[tails],
        heads=corners[heads],
        following=_vertical_partners(rows, columns, around[rows, columns])[heads] // 2,
        pieces=pieces[rows[lefts] + south, columns[lefts] + 1],
    )


def _vertical_partners(
    rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], around: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    """Return for each corner the corner at the other end of its vertical edge.

    In a column every other corner begins an edge. Of two corners at one point, the first ends the edge from the west.
    The first also ends the edge from the north, unless that would join the two pixels that meet at the point.
    """
    second = np.zeros(len(rows), bool)
    second[1:] = (np.diff(rows) == 0) & (np.diff(columns) == 0)
    from_north_first = second ^ (around == _ONLY_NORTH_EAST_AND_SOUTH_WEST)
    order = np.lexsort((from_north_first, rows, columns))
    partners = np.empty_like(order)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def _rings(edges: _Edges) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Follow the edges; yield the piece and the corners [N, 2] of each ring. No ring has a corner twice."""
    following = edges.following.tolist()
    done = [False] * len(following)
    for first in range(len(following)):
        if done[first]:
            continue
        ring = []
        edge = first
        while not done[edge]:
            done[edge] = True
            ring.append(edge)
            edge = following[edge]
        corners = np.stack([edges.tails[ring], edges.heads[ring]], axis=1).reshape(-1, 2)
        for simple in _simple_rings(corners):
            yield int(edges.pieces[first]), simple


def _simple_rings(corners: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Cut a ring [N, 2] at each corner that the ring visits twice."""
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for corner in map(tuple, corners.tolist()):
        if corner in place:
            loop = path[place[corner] :]
            del path[place[corner] :]
            for left in loop:
                del place[left]
            yield np.array(loop)
        place[corner] = len(path)
        path.append(corner)
    yield np.array(path)


def _shoelace(ring: npt.NDArray[np.int64]) -> int:
    """Return twice the signed area of a ring [N, 2]."""
    x, y = ring.T
    return int(x @ np.roll(y, -1) - y @ np.roll(x, -1))
