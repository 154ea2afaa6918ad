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

import numpy as np
import numpy.typing as npt

from m2f.geometry import Ints
from m2f.runs import Runs

Points = npt.NDArray[np.int32]


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

    tails: Ints
    heads: Ints
    following: Ints
    pieces: Ints


class _Corners(NamedTuple):
    """The corners of a mask's outlines, row by row. Where two pixels meet only at a point, the point is two corners.

    In a row of corners every other one begins a horizontal edge, and the next one ends it; so in a column.

    Attributes:
        columns: int [N], x.
        rows: int [N], y.
        below: bool [N], whether the pixel to the lower right is inside, not the one to the upper right; of a corner
            without horizontal edge to the right: False.
        run: int [N], the run with that edge.
        second: bool [N], whether it is the second corner at its point.
        crossed: bool [N], whether the two pixels that meet only there are to the upper right and lower left.
    """

    columns: Ints
    rows: Ints
    below: npt.NDArray[np.bool_]
    run: Ints
    second: npt.NDArray[np.bool_]
    crossed: npt.NDArray[np.bool_]


def trace(mask: Runs) -> list[Polygon]:
    """Return the polygons of a mask, one for each 4-connected piece, from top to bottom.

    What it costs depends on the outlines only, not on the size of the picture.
    """
    edges = _edges(mask)
    exteriors: dict[int, Points] = {}
    holes: dict[int, list[Points]] = {}
    for piece, ring in _rings(edges):
        points = ring.astype(np.int32)
        if _shoelace(ring) > 0:
            exteriors[piece] = points
        else:
            holes.setdefault(piece, []).append(points)
    return [Polygon(exterior, tuple(holes.get(piece, ()))) for piece, exterior in exteriors.items()]


def _edges(mask: Runs) -> _Edges:
    corners = _corners(mask)
    lefts = np.arange(0, len(corners.rows), 2)
    below = corners.below[lefts].astype(np.int64)
    tails, heads = lefts + 1 - below, lefts + below
    points = np.stack([corners.columns, corners.rows], axis=1)
    return _Edges(
        tails=points[tails],
        heads=points[heads],
        following=_vertical_partners(corners)[heads] // 2,
        pieces=_pieces(mask)[corners.run[lefts]],
    )


def _corners(mask: Runs) -> _Corners:
    """Find the corners: the ends of the runs of a column, on both sides of it, that the next column does not share."""
    count = len(mask.columns)
    run = np.tile(np.arange(count), 4)
    columns = np.concatenate([mask.columns, mask.columns, mask.columns + 1, mask.columns + 1])
    rows = np.concatenate([mask.begins, mask.ends] * 2)
    begins = np.tile(np.repeat([True, False], count), 2)
    to_the_right = np.repeat([True, False], 2 * count)  # of the point: its run
    order = np.lexsort((~to_the_right, columns, rows))
    columns, rows, begins, to_the_right, run = (each[order] for each in (columns, rows, begins, to_the_right, run))
    same = (columns[1:] == columns[:-1]) & (rows[1:] == rows[:-1])  # of a pair, the one to the right is the first
    paired = np.flatnonzero(same)
    straight = paired[begins[paired] == begins[paired + 1]]  # an edge passes: no corner
    meeting = paired[begins[paired] != begins[paired + 1]]
    second, crossed, keep = (np.zeros(len(rows), bool) for _ in range(3))
    second[meeting + 1] = True
    crossed[meeting] = crossed[meeting + 1] = ~begins[meeting]
    keep[:] = True
    keep[straight] = keep[straight + 1] = False
    run[meeting + 1] = run[meeting]  # both corners stand for the point; the edge to its right begins at one of them
    below = begins & to_the_right
    below[meeting + 1] = below[meeting]
    return _Corners(*(each[keep] for each in (columns, rows, below, run, second, crossed)))


def _pieces(mask: Runs) -> Ints:
    """Return for each run the number of its 4-connected piece."""
    height = int(mask.ends.max(initial=0)) + 1
    tops = (mask.columns + 1) * height  # of the next column
    begins, ends = mask.columns * height + mask.begins, mask.columns * height + mask.ends
    first = np.searchsorted(ends, tops + mask.begins, side="right")
    counts = np.maximum(0, np.searchsorted(begins, tops + mask.ends, side="left") - first)  # runs of it that touch
    one = np.repeat(np.arange(len(counts)), counts)
    other = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    pieces = np.arange(len(counts))
    while True:
        low, high = np.minimum(pieces[one], pieces[other]), np.maximum(pieces[one], pieces[other])
        if (low == high).all():
            return pieces
        np.minimum.at(pieces, high, low)
        while ((lower := pieces[pieces]) != pieces).any():
            pieces = lower


def _vertical_partners(corners: _Corners) -> Ints:
    """Return for each corner the corner at the other end of its vertical edge.

    Of two corners at one point, the first ends the edge from the west. The first also ends the edge from the north,
    unless that would join the two pixels that meet at the point.
    """
    from_north_first = corners.second ^ corners.crossed
    order = np.lexsort((from_north_first, corners.rows, corners.columns))
    partners = np.empty_like(order)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def _rings(edges: _Edges) -> Iterator[tuple[int, Ints]]:
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


def _simple_rings(corners: Ints) -> Iterator[Ints]:
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


def _shoelace(ring: Ints) -> int:
    """Return twice the signed area of a ring [N, 2]."""
    x, y = ring.T
    return int(x @ np.roll(y, -1) - y @ np.roll(x, -1))
