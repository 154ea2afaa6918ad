"""A picture in overlapping tiles, and the instances of the tiles as instances of the picture.

The rule, in the order in which it is applied:

1. An instance is **cut** if its mask comes within a 256th of the tile's side of an edge that has picture beyond it.
2. Two instances of one class from two tiles are **the same object** if their masks agree where both tiles see: an IoU
   of 0.5 there. The best agreement counts first, and an object has one instance of each tile, so that two objects that
   touch stay two.
3. What is left of the cut instances joins an object of its class that covers 0.8 of it where both tiles see: two arms
   of a U, in one tile, are one object in the next.
4. An object that a tile sees **whole** is taken from there: mask, box, score; of several the best score.
5. Other objects are put together. A pixel is decided by the tile that has it farthest from its edges, if that tile is
   one of the object's, and is inside otherwise if it is inside any. The score is the mean, weighted by area.
6. A cut instance that stands alone and lies, to 0.8, in an object that another tile sees whole, is dropped: a part was
   taken for something else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from m2f.errors import InputError
from m2f.runs import Rect, Runs, union

MAX_TILES = 250_000
"""Largest number of tiles of a picture."""

_SAME = 0.5  # IoU, where both tiles see
_COVERED = 0.8  # part of a mask
_HALF = 0.5
_NEAR = 256  # part of a tile's side that counts as touching its edge


@dataclass(frozen=True)
class Tile:
    """A part of a picture that is one request.

    Attributes:
        rect: the part.
        own: the pixels of it that no other tile has farther from its edges.
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


@dataclass(frozen=True, eq=False)
class Part:
    """An instance as one tile sees it.

    Attributes:
        tile: index of the tile.
        label: class index.
        score: its score.
        query: the query that made it.
        mask: in the picture's pixels, not empty.
        cut: whether it may go on outside the tile.
    """

    tile: int
    label: int
    score: float
    query: int
    mask: Runs
    cut: bool


def grid(height: int, width: int, *, tile: int, overlap: float) -> list[Tile]:
    """Cut a picture into tiles of one size, row by row; neighbours overlap by at least a part of the side.

    Args:
        height: of the picture.
        width: of the picture.
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


def merge(tiles: Sequence[Tile], parts: Sequence[Part]) -> list[Part]:
    """Return the instances of the picture, best first; the rule stands above.

    Args:
        tiles: the tiles of the picture.
        parts: the instances of all tiles, in any order.
    """
    parts = sorted(parts, key=lambda part: (part.tile, -part.score, part.label, part.mask.box))
    meetings = list(_meetings(tiles, parts))
    objects = _Objects(parts)
    for meeting in sorted(meetings, key=lambda meeting: (-meeting.certainty, meeting.pair)):
        if meeting.agreement >= _SAME and meeting.same_class:
            objects.join(*meeting.pair, one_of_each_tile=True)
    for meeting in meetings:
        if meeting.covered >= _COVERED and meeting.same_class:
            objects.join(*meeting.pair)
    groups = [[parts[index] for index in group] for group in objects.groups()]
    dropped = _taken_for_something_else(parts, objects, meetings)
    found = [_one(tiles, group) for group in groups if group[0] not in dropped]
    return sorted(found, key=lambda part: (-part.score, part.mask.box, part.label))


@dataclass(frozen=True)
class _Meeting:
    """Two instances of two tiles that have pixels where both tiles see.

    Attributes:
        pair: their indices.
        same_class: whether they have one label.
        agreement: IoU where both tiles see.
        certainty: that, times the lower score.
        covered: largest part, where both tiles see, of a cut one that the other one covers.
    """

    pair: tuple[int, int]
    same_class: bool
    agreement: float
    certainty: float
    covered: float


def _meetings(tiles: Sequence[Tile], parts: Sequence[Part]) -> Iterator[_Meeting]:
    of_tile: dict[int, list[int]] = defaultdict(list)
    for index, part in enumerate(parts):
        of_tile[part.tile].append(index)
    for one, other in _neighbours(tiles):
        common = tiles[one].rect.intersection(tiles[other].rect)
        seen = ([(index, parts[index].mask.inside(common)) for index in of_tile[tile]] for tile in (one, other))
        yield from _compared(parts, *([(index, mask) for index, mask in side if mask.area] for side in seen))


def _neighbours(tiles: Sequence[Tile]) -> Iterator[tuple[int, int]]:
    """Return the pairs of tiles that see something in common."""
    rects = np.array([tile.rect for tile in tiles], np.int64)
    for index, (x1, y1, x2, y2) in enumerate(rects[:-1]):
        later = rects[index + 1 :]
        meet = (later[:, 0] < x2) & (later[:, 2] > x1) & (later[:, 1] < y2) & (later[:, 3] > y1)
        yield from ((index, index + 1 + int(other)) for other in np.flatnonzero(meet))


def _compared(
    parts: Sequence[Part], ours: Sequence[tuple[int, Runs]], theirs: Sequence[tuple[int, Runs]]
) -> Iterator[_Meeting]:
    for first, mask in ours:
        for second, other in theirs:
            if mask.box.intersection(other.box).empty or not (shared := mask.intersection(other)):
                continue
            covered = [shared / side.area for index, side in ((first, mask), (second, other)) if parts[index].cut]
            agreement = shared / (mask.area + other.area - shared)
            yield _Meeting(
                (first, second),
                parts[first].label == parts[second].label,
                agreement,
                agreement * min(parts[first].score, parts[second].score),
                max(covered, default=0.0),
            )


class _Objects:
    """Which instances are one object."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._group = {index: [index] for index in range(len(parts))}
        self._tile = [part.tile for part in parts]

    def join(self, first: int, second: int, *, one_of_each_tile: bool = False) -> None:
        """Make one object of those of two instances, unless a tile would have two instances of it."""
        group, other = self._group[first], self._group[second]
        if group is other:
            return
        if one_of_each_tile and {self._tile[i] for i in group} & {self._tile[i] for i in other}:
            return
        group += other
        self._group.update(dict.fromkeys(other, group))

    def of(self, index: int) -> list[int]:
        """Return the instances of an instance's object."""
        return self._group[index]

    def groups(self) -> Iterable[list[int]]:
        """Return the instances of each object."""
        return {id(group): group for group in self._group.values()}.values()


def _taken_for_something_else(parts: Sequence[Part], objects: _Objects, meetings: Iterable[_Meeting]) -> set[Part]:
    """Return the cut instances that stand alone in an object that another tile sees whole."""
    dropped = set()
    for meeting in meetings:
        for index, other in (meeting.pair, meeting.pair[::-1]):
            part, whole = parts[index], parts[other]
            alone = part.cut and not whole.cut and len(objects.of(index)) == 1
            if alone and part.mask.intersection(whole.mask) >= _COVERED * part.mask.area:
                dropped.add(part)
    return dropped


def _one(tiles: Sequence[Tile], group: Sequence[Part]) -> Part:
    """Return an object as one instance."""
    surest = max(part.score for part in group)
    best = max(group, key=lambda part: (not part.cut and part.score >= _HALF * surest, part.score))
    if not best.cut or len(group) == 1:
        return best
    owns = [tiles[tile].own for tile in {part.tile for part in group}]
    pieces = []
    for part in group:
        elsewhere = part.mask
        for own in owns:
            elsewhere = elsewhere.outside(own)
        pieces += [part.mask.inside(tiles[part.tile].own), elsewhere]
    areas = [part.mask.area for part in group]
    score = float(np.average([part.score for part in group], weights=areas))
    mask = union(pieces)
    return replace(best, mask=mask if mask.area else best.mask, score=score, cut=False)
