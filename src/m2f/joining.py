"""The instances of overlapping tiles as instances of the picture.

What a tile sees of one query is a **view**: a mask, and a score for each class. The rule, in the order in which it is
applied:

1. A view is **cut** if its mask comes within a 256th of the tile's side of an edge that has picture beyond it.
2. Two views of two tiles are **one object** if their masks agree where both tiles see: an IoU of 0.5 there, whatever
   the classes. If one of them is whole, all pixels of the other count. The surest agreement counts first. An object has
   one view of each tile, so that two objects that touch stay two, and all its whole views agree with each other.
3. Cut views of one tile that cover each other to less than 0.2 join the cut view of another tile, of their class, that
   covers 0.8 of each and with which they agree together: two arms of a U, in one tile, are one object in the next.
4. An object that a tile sees **whole** is taken from there, from the best score; its score is the mean over all tiles
   that see the place whole, of which one that does not find it counts as 0, as in weighted boxes fusion.
5. Other objects are put together. A pixel is decided by the tile that has it farthest from its edges, if that tile is
   one of the object's, and is inside otherwise if it is inside any. The score is the mean, weighted by area.
6. Dropped are an object whose views are all cut and lie, to 0.8, in views that other tiles see whole: a part was taken
   for something else; and a cut view that stays alone and lies, to 0.8, in a better view of its tile and class that
   another tile confirms: a part was found twice.

A tile that is the picture as a whole shows what is larger than the tiles. Only its views that no tile sees whole count,
and only for views of their class: a tile that lies in a large object may see another one of the same extent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from m2f.kernels import BEST
from m2f.runs import Rect, Runs, union
from m2f.sampling import Edges
from m2f.tiles import Tile

_SAME = 0.5  # IoU, where both tiles see
_COVERED = 0.8  # part of a mask
_HALF = 0.5  # of the best score: a view below is not trusted to see an object whole


@dataclass(frozen=True, eq=False)
class Part:
    """An instance: as one tile sees it, or of the picture.

    Attributes:
        tile: index of the tile that made its mask, or most of it.
        label: class index.
        score: its score.
        query: the query that made it.
        mask: in the picture's pixels, not empty. Instances of one tile and query have one mask.
    """

    tile: int
    label: int
    score: float
    query: int
    mask: Runs


def merge(tiles: Sequence[Tile], parts: Iterable[Part]) -> list[Part]:
    """Return the instances of the picture, best first; the rule stands above.

    Args:
        tiles: the tiles of the picture; the last may be the picture as a whole.
        parts: the instances of all tiles, in any order.
    """
    places = _Places(tiles)
    views = _views(places, parts)
    meetings = list(_meetings(tiles, views))
    sides = [side for meeting in meetings for side in (meeting, meeting.swapped())]
    objects = _Objects(views, meetings)
    _join_same(places, views, objects, meetings)
    _join_arms(places, views, objects, sides)
    mistaken = _taken_for_something_else(places, views, sides) | _found_twice(places, views, objects)
    groups = ([views[index] for index in group] for group in objects.groups() if not mistaken.issuperset(group))
    found = [part for group in groups for part in _instances(places, group)]
    return sorted(found, key=lambda part: (-part.score, part.mask.box, part.label))


@dataclass(frozen=True, eq=False)
class _View:
    """What a tile sees of a query.

    Attributes:
        tile: index of the tile.
        query: the query.
        mask: in the picture's pixels.
        scores: of each class.
        cut: whether it may go on outside the tile.
    """

    tile: int
    query: int
    mask: Runs
    scores: Mapping[int, float]
    cut: bool

    @cached_property
    def area(self) -> int:
        return self.mask.area

    @cached_property
    def box(self) -> Rect:
        return self.mask.box

    @cached_property
    def label(self) -> int:
        """Its best class; the first among equals."""
        return max(sorted(self.scores), key=lambda label: self.scores[label])

    @cached_property
    def best(self) -> float:
        return self.scores[self.label]


class _Places:
    """What each tile sees whole."""

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self.tiles = tiles
        rects = [(-1, -1, -1, -1) if tile.own.empty else tile.rect for tile in tiles]
        self._x1, self._y1, self._x2, self._y2 = np.array(rects, np.int64).reshape(-1, 4).T

    def seen_whole(self, box: Rect) -> list[int]:
        """Return the indices of the tiles that see a box whole; not of the picture as a whole."""
        inside = (self._x1 <= box.x1) & (self._y1 <= box.y1) & (self._x2 >= box.x2) & (self._y2 >= box.y2)
        return [index for index in np.flatnonzero(inside).tolist() if not self.tiles[index].cuts(box)]

    def counts(self, view: _View) -> bool:
        """Return whether a view is to be used: that of a tile, or of what no tile sees whole."""
        return not self.is_whole(view) or not self.seen_whole(view.box)

    def is_whole(self, view: _View) -> bool:
        """Return whether a view is that of the picture as a whole."""
        return self.tiles[view.tile].own.empty

    def comparable(self, view: _View, other: _View) -> bool:
        """Return whether two views may be of one object; with the picture as a whole the class decides."""
        return view.label == other.label or not (self.is_whole(view) or self.is_whole(other))


def _views(places: _Places, parts: Iterable[Part]) -> list[_View]:
    of_query: dict[tuple[int, int], list[Part]] = defaultdict(list)
    for part in parts:
        of_query[part.tile, part.query].append(part)
    views = []
    for (tile, query), rows in of_query.items():
        mask = rows[0].mask
        scores: dict[int, float] = {}
        for row in rows:
            scores[row.label] = max(row.score, scores.get(row.label, 0.0))
        views.append(_View(tile, query, mask, scores, places.tiles[tile].cuts(mask.box)))
    views.sort(key=lambda view: (view.tile, -view.best, view.box, view.query))
    return [view for view in views if places.counts(view)]


class _Side(NamedTuple):
    """A view that meets another one, and pixels where both tiles see.

    Attributes:
        view: its index.
        other: index of the other one.
        shared: number of pixels that are in both.
        area: number of pixels of the view; all of them, if the other one is not cut.
        other_area: the same of the other one.
    """

    view: int
    other: int
    shared: int
    area: int
    other_area: int

    @property
    def covered(self) -> float:
        """The part of the view that the other one covers."""
        return self.shared / self.area

    @property
    def agreement(self) -> float:
        """IoU."""
        return self.shared / (self.area + self.other_area - self.shared)

    def swapped(self) -> _Side:
        """Return the same of the other view."""
        return _Side(self.other, self.view, self.shared, self.other_area, self.area)


def _meetings(tiles: Sequence[Tile], views: Sequence[_View]) -> Iterator[_Side]:
    """Yield two views of two tiles, once, if they share pixels."""
    of_tile: dict[int, list[int]] = defaultdict(list)
    for index, view in enumerate(views):
        of_tile[view.tile].append(index)
    for one, other in _neighbours(tiles):
        common = tiles[one].rect.intersection(tiles[other].rect)
        ours, theirs = ([_Seen.of(views, index, common) for index in of_tile[tile]] for tile in (one, other))
        for first in filter(None, ours):
            for second in filter(None, theirs):
                if shared := first.shared(second):
                    yield _Side(first.view, second.view, shared, first.area_beside(second), second.area_beside(first))


def _neighbours(tiles: Sequence[Tile]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of tiles that see something in common."""
    rects = np.array([tile.rect for tile in tiles], np.int64)
    for index, (x1, y1, x2, y2) in enumerate(rects[:-1]):
        later = rects[index + 1 :]
        meet = (later[:, 0] < x2) & (later[:, 2] > x1) & (later[:, 1] < y2) & (later[:, 3] > y1)
        yield from ((index, index + 1 + int(other)) for other in np.flatnonzero(meet))


@dataclass(frozen=True, eq=False)
class _Seen:
    """A view's pixels in a part of the picture; there are some.

    Attributes:
        view: index of the view.
        part: the part of the picture.
        mask: the pixels.
        box: the smallest part of the picture that holds these pixels.
        whole: the view, all of its pixels.
    """

    view: int
    part: Rect
    mask: Runs
    box: Rect
    whole: _View

    @classmethod
    def of(cls, views: Sequence[_View], index: int, part: Rect) -> _Seen | None:
        box = views[index].box.intersection(part)
        if box.empty:
            return None
        mask = views[index].mask
        if box != views[index].box:
            mask = mask.inside(part)
            box = mask.box
        return None if box.empty else cls(index, part, mask, box, views[index])

    @cached_property
    def area(self) -> int:
        return self.mask.area

    def area_beside(self, other: _Seen) -> int:
        """Return the number of pixels that a view must share with another one to be the same.

        A view that is not cut is all of its object: pixels beyond what both tiles see count against the other view.
        """
        return self.area if other.whole.cut else self.whole.area

    @cached_property
    def edges(self) -> Edges:
        """Where the runs of the pixels start and end down the columns of the part."""
        return self.mask.edges(self.part)

    def shared(self, other: _Seen) -> int:
        """Return the number of pixels that are in both."""
        return 0 if self.box.intersection(other.box).empty else BEST.intersection(self.edges, other.edges)


class _Objects:
    """Which views are of one object."""

    def __init__(self, views: Sequence[_View], meetings: Iterable[_Side]) -> None:
        self._views = views
        self._group = {index: [index] for index in range(len(views))}
        self._same = {frozenset((side.view, side.other)) for side in meetings if side.agreement >= _SAME}

    def join(self, first: int, second: int) -> None:
        """Make one object of those of two views, unless two views of it are whole and not the same."""
        group, other = self._group[first], self._group[second]
        if group is other or not self._agree(group, other):
            return
        group += other
        self._group.update(dict.fromkeys(other, group))

    def join_one_of_each_tile(self, first: int, second: int) -> None:
        """Do so unless a tile would have two views of it, too."""
        tiles = [{self._views[index].tile for index in self._group[side]} for side in (first, second)]
        if tiles[0].isdisjoint(tiles[1]):
            self.join(first, second)

    def _agree(self, group: Iterable[int], other: Iterable[int]) -> bool:
        wholes = [[index for index in side if not self._views[index].cut] for side in (group, other)]
        return all(frozenset((one, two)) in self._same for one in wholes[0] for two in wholes[1])

    def alone(self, index: int) -> bool:
        """Return whether a view is the only one of its object."""
        return len(self._group[index]) == 1

    def groups(self) -> Iterable[list[int]]:
        """Return the views of each object."""
        return {id(group): group for group in self._group.values()}.values()


def _join_same(places: _Places, views: Sequence[_View], objects: _Objects, meetings: Iterable[_Side]) -> None:
    """Join views that agree where both tiles see, the surest first."""

    def certainty(meeting: _Side) -> float:
        return meeting.agreement * min(views[meeting.view].best, views[meeting.other].best)

    for meeting in sorted(meetings, key=lambda meeting: (-certainty(meeting), meeting)):
        if meeting.agreement >= _SAME and places.comparable(views[meeting.view], views[meeting.other]):
            objects.join_one_of_each_tile(meeting.view, meeting.other)


def _join_arms(places: _Places, views: Sequence[_View], objects: _Objects, sides: Iterable[_Side]) -> None:
    """Join cut views of one tile to the cut view of another one that is all of them together."""
    of_tile: dict[tuple[int, int], list[_Side]] = defaultdict(list)
    for side in sides:
        view, other = views[side.view], views[side.other]
        if side.covered < _COVERED or not view.cut or not other.cut or view.label != other.label:
            continue
        of_tile[side.other, view.tile].append(side)
    for (covering, tile), arms in of_tile.items():
        apart = _apart(views, arms, places.tiles[tile].rect)
        shared, area = sum(arm.shared for arm in apart), sum(arm.area for arm in apart)
        if shared >= _SAME * (area + apart[0].other_area - shared):
            for arm in apart:
                if objects.alone(arm.view):
                    objects.join(covering, arm.view)


def _apart(views: Sequence[_View], arms: Iterable[_Side], tile: Rect) -> list[_Side]:
    """Return the views of one tile that do not cover each other, the best first."""
    chosen: list[_Side] = []
    taken: list[Edges] = []
    for arm in sorted(arms, key=lambda arm: (-views[arm.view].best, arm)):
        edges = views[arm.view].mask.edges(tile)
        if all(BEST.intersection(edges, before) <= (1 - _COVERED) * views[arm.view].area for before in taken):
            chosen.append(arm)
            taken.append(edges)
    return chosen


def _taken_for_something_else(places: _Places, views: Sequence[_View], sides: Iterable[_Side]) -> set[int]:
    """Return the cut views that lie in a view that another tile sees whole."""
    return {
        side.view
        for side in sides
        if views[side.view].cut
        and not views[side.other].cut
        and side.shared >= _COVERED * views[side.view].area
        and views[side.other].best >= _HALF * views[side.view].best
        and places.comparable(views[side.view], views[side.other])
    }


def _found_twice(places: _Places, views: Sequence[_View], objects: _Objects) -> set[int]:
    """Return the cut views that stay alone in a better view of their tile and class that another tile confirms."""
    confirmed: dict[tuple[int, int], list[_View]] = defaultdict(list)
    twice = set()
    for index, view in enumerate(views):  # the best of each tile first
        if not objects.alone(index):
            confirmed[view.tile, view.label].append(view)
        elif view.cut:
            tile = places.tiles[view.tile].rect
            edges = view.mask.edges(tile)
            better = (other.mask.edges(tile) for other in confirmed[view.tile, view.label])
            if any(BEST.intersection(edges, other) >= _COVERED * view.area for other in better):
                twice.add(index)
    return twice


def _instances(places: _Places, group: Sequence[_View]) -> Iterator[Part]:
    """Yield an object as an instance of each class that a view has."""
    surest = max(view.best for view in group)
    best = max(group, key=lambda view: (not view.cut and view.best >= _HALF * surest, view.best))
    mask, evidence = best.mask, group
    if not best.cut:
        evidence = [view for view in group if not view.cut]
    elif len(group) > 1:
        mask = _put_together(places.tiles, group) or mask
    blind = set(places.seen_whole(mask.box)) - {view.tile for view in group}
    total = sum(view.area for view in evidence) + len(blind) * mask.area
    labels = sorted({label for view in evidence for label in view.scores})
    for label in labels:
        score = sum(view.area * view.scores.get(label, 0.0) for view in evidence) / total
        yield Part(best.tile, label, score, best.query, mask)


def _put_together(tiles: Sequence[Tile], group: Sequence[_View]) -> Runs | None:
    """Return the mask of an object that no tile sees whole; None if no pixel is left of it."""
    owns = [tiles[tile].own for tile in {view.tile for view in group}]
    pieces = []
    for view in group:
        elsewhere = view.mask
        for own in owns:
            elsewhere = elsewhere.outside(own)
        pieces += [view.mask.inside(tiles[view.tile].own), elsewhere]
    mask = union(pieces)
    return mask if mask.area else None
