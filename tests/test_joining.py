"""The rule that joins the instances of tiles, on pictures whose objects are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiled_scenes import masks_of, parts_of, rectangle, same

from m2f.joining import Part, merge
from m2f.runs import Rect
from m2f.tiles import Tile, grid

HEIGHT, WIDTH, TILE, OVERLAP = 60, 80, 32, 0.25


@pytest.fixture
def tiles():
    return grid(HEIGHT, WIDTH, tile=TILE, overlap=OVERLAP)


@st.composite
def scenes(draw):
    """Disjoint rectangles of two classes, two pixels or more apart."""
    taken = np.zeros((HEIGHT, WIDTH), bool)
    objects = []
    for _ in range(draw(st.integers(1, 6))):
        x1, y1 = draw(st.integers(0, WIDTH - 4)), draw(st.integers(0, HEIGHT - 4))
        width, height = draw(st.integers(4, 60)), draw(st.integers(4, 50))
        mask = rectangle(HEIGHT, WIDTH, x1, y1, min(WIDTH, x1 + width), min(HEIGHT, y1 + height))
        if not (taken & mask).any():
            objects.append((draw(st.integers(0, 1)), mask))
            taken |= rectangle(HEIGHT, WIDTH, max(0, x1 - 2), max(0, y1 - 2), x1 + width + 2, y1 + height + 2)
    return objects


@given(scenes())
def test_what_tiles_see_without_mistakes_is_the_picture(objects):
    tiles = grid(HEIGHT, WIDTH, tile=TILE, overlap=OVERLAP)
    assert same(merge(tiles, parts_of(tiles, objects)), objects)


@given(scenes(), st.integers(0, 31), st.integers(0, 31), st.sampled_from([16, 32, 48]), st.sampled_from([0.2, 0.5]))
def test_moving_the_grid_changes_nothing(objects, x, y, tile, overlap):
    """The picture is shifted on a larger ground, which moves the grid over it."""
    objects = [(label, np.pad(mask, ((y, 31 - y), (x, 31 - x)))) for label, mask in objects]
    tiles = grid(HEIGHT + 31, WIDTH + 31, tile=tile, overlap=overlap)
    assert same(merge(tiles, parts_of(tiles, objects)), objects)


@given(scenes(), st.randoms(use_true_random=False))
def test_the_order_of_the_answers_does_not_matter(objects, random):
    tiles = grid(HEIGHT, WIDTH, tile=TILE, overlap=OVERLAP)
    parts = parts_of(tiles, objects, score=lambda tile, number: (1 + (7 * tile + 3 * number) % 11) / 12)
    shuffled = random.sample(parts, len(parts))
    assert [_row(part) for part in merge(tiles, shuffled)] == [_row(part) for part in merge(tiles, parts)]


def _row(part):
    return part.label, part.score, part.query, part.tile, part.mask.rle(HEIGHT, WIDTH)


def test_two_objects_of_a_class_that_touch_on_a_seam_stay_two(tiles):
    upper = (0, rectangle(HEIGHT, WIDTH, 5, 10, 75, 30))
    lower = (0, rectangle(HEIGHT, WIDTH, 5, 30, 75, 50))
    assert same(merge(tiles, parts_of(tiles, [upper, lower])), [upper, lower])


def test_two_arms_in_one_tile_are_one_object_in_the_next(tiles):
    """A tile that sees the arms of a U alone has two instances; the next one has them in one."""
    arms = [rectangle(HEIGHT, WIDTH, 10, y, 50, y + 6) for y in (4, 20)]
    bow = rectangle(HEIGHT, WIDTH, 50, 4, 56, 26)
    u = (0, arms[0] | arms[1] | bow)
    left = [part for part in parts_of(tiles, [(0, arms[0]), (0, arms[1])]) if tiles[part.tile].rect.x2 < 50]
    rest = [part for part in parts_of(tiles, [u]) if tiles[part.tile].rect.x2 >= 50]
    assert left
    assert rest
    assert same(merge(tiles, [*left, *rest]), [u])


def test_tiles_that_name_an_object_differently_see_one_object():
    tiles = grid(40, 60, tile=40, overlap=0.5)
    square = rectangle(40, 60, 24, 10, 36, 22)
    (first,) = parts_of(tiles[:1], [(0, square)])
    other = Part(1, 1, 0.5, 9, first.mask)
    found = merge(tiles, [first, other])
    assert [(part.label, part.score) for part in found] == [(0, pytest.approx(0.45)), (1, pytest.approx(0.25))]
    assert all(part.mask is first.mask for part in found)


def test_classes_of_a_query_share_its_mask_and_its_place():
    tiles = grid(40, 60, tile=40, overlap=0.5)
    square = rectangle(40, 60, 24, 10, 36, 22)
    parts = parts_of(tiles, [(0, square)])
    parts += [Part(part.tile, 3, 0.1, part.query, part.mask) for part in parts]
    assert [(part.label, part.score) for part in merge(tiles, parts)] == [
        (0, pytest.approx(0.9)),
        (3, pytest.approx(0.1)),
    ]


def test_the_best_of_the_tiles_that_see_an_object_whole_gives_its_mask():
    tiles = grid(40, 60, tile=40, overlap=0.5)
    square, smaller = rectangle(40, 60, 24, 10, 36, 22), rectangle(40, 60, 24, 10, 36, 20)
    parts = [*parts_of(tiles[:1], [(0, square)], score=0.6), *_at(1, tiles, smaller, 0.8)]
    (found,) = merge(tiles, parts)
    assert (found.tile, found.mask.area) == (1, smaller.sum())
    weights = square.sum(), smaller.sum()
    assert found.score == pytest.approx(np.average([0.6, 0.8], weights=weights))


def test_a_tile_that_sees_the_place_whole_and_does_not_find_it_counts():
    tiles = grid(40, 60, tile=40, overlap=0.5)
    seen_by_both = rectangle(40, 60, 24, 10, 36, 22)
    seen_by_one = rectangle(40, 60, 2, 10, 14, 22)
    found = merge(tiles, parts_of(tiles[:1], [(0, seen_by_both), (1, seen_by_one)], score=0.8))
    assert {part.label: part.score for part in found} == {0: pytest.approx(0.4), 1: pytest.approx(0.8)}


def test_an_object_seen_whole_is_not_taken_from_where_it_is_cut():
    tiles = grid(40, 60, tile=40, overlap=0.5)
    square = rectangle(40, 60, 15, 10, 36, 22)  # the second tile begins at 20
    wrong = rectangle(40, 60, 20, 10, 36, 25)  # what it makes of the rest
    parts = [*parts_of(tiles[:1], [(0, square)], score=0.6), *_at(1, tiles, wrong, 0.9)]
    (found,) = merge(tiles, parts)
    assert (found.mask.area, found.score) == (square.sum(), pytest.approx(0.6))


def test_a_part_that_was_taken_for_something_else_is_dropped():
    tiles = grid(40, 60, tile=40, overlap=0.5)
    square = rectangle(40, 60, 8, 10, 36, 22)
    corner = rectangle(40, 60, 20, 10, 24, 14)  # another class, at the edge of the second tile
    parts = [*parts_of(tiles[:1], [(0, square)]), *_at(1, tiles, corner, 0.9, label=1)]
    assert same(merge(tiles, parts), [(0, square)])


def test_a_part_that_two_tiles_take_for_something_else_is_dropped():
    tiles = grid(60, 60, tile=40, overlap=0.5)
    square = rectangle(60, 60, 8, 8, 34, 34)
    corner = rectangle(60, 60, 20, 20, 24, 34)  # cut by the tiles on the right, below, and on the right below
    seen = parts_of(tiles, [(0, square), (1, corner)], score=lambda tile, number: 0.9 if (tile == 0) != number else 0)
    assert sum(part.label == 1 for part in seen) == 3
    assert same(merge(tiles, seen), [(0, square)])


def test_a_part_that_its_tile_finds_twice_is_dropped():
    tiles = grid(32, 56, tile=32, overlap=0.25)
    bar = (0, rectangle(32, 56, 2, 8, 54, 16))
    again = _at(0, tiles, rectangle(32, 56, 6, 8, 54, 15), 0.8)
    assert same(merge(tiles, [*parts_of(tiles, [bar]), *again]), [bar])


def test_a_smaller_object_of_another_class_on_a_cut_one_stays():
    tiles = grid(32, 56, tile=32, overlap=0.25)
    bar, spot = (0, rectangle(32, 56, 2, 8, 54, 16)), (1, rectangle(32, 56, 20, 10, 40, 14))
    assert same(merge(tiles, parts_of(tiles, [bar, spot])), [bar, spot])


def test_what_a_tile_finds_twice_is_not_an_arm(tiles):
    """Two views of one tile that cover each other are two findings, not two arms of what the next tile sees."""
    bar = rectangle(HEIGHT, WIDTH, 5, 8, 75, 16)
    half = rectangle(HEIGHT, WIDTH, 5, 8, 75, 11)
    left = [*_at(0, tiles, half, 0.8), *_at(0, tiles, rectangle(HEIGHT, WIDTH, 5, 8, 75, 10), 0.7)]
    left = [Part(part.tile, part.label, part.score, number, part.mask) for number, part in enumerate(left)]
    found = merge(tiles, [*left, *(part for part in parts_of(tiles, [(0, bar)]) if part.tile == 1)])
    assert len(found) == 3


def test_a_tile_that_takes_several_objects_for_one_does_not_join_them():
    """Two tiles see an object whole each; the tile between them has both in one view, with more than either."""
    tiles = grid(40, 80, tile=40, overlap=0.5)
    first, second = rectangle(40, 80, 24, 10, 33, 22), rectangle(40, 80, 47, 10, 56, 22)
    wrong = first | second | rectangle(40, 80, 24, 24, 56, 30)
    parts = [*_at(0, tiles, first, 0.9), *_at(2, tiles, second, 0.8), *_at(1, tiles, wrong, 0.7)]
    assert same(merge(tiles, parts), [(0, first), (0, second), (0, wrong)])


def test_views_that_each_see_another_object_whole_stay_apart():
    """A cut view may agree with both where it sees them; an object cannot be whole in two places."""
    tiles = grid(40, 120, tile=40, overlap=0.5)
    first, second = rectangle(40, 120, 22, 10, 39, 22), rectangle(40, 120, 62, 10, 78, 22)
    both = first | second | rectangle(40, 120, 39, 14, 62, 18)
    middle = [*_at(1, tiles, both, 0.7), *_at(2, tiles, both, 0.7)]
    found = merge(tiles, [*_at(0, tiles, first, 0.9), *_at(3, tiles, second, 0.8), *middle])
    boxes = [part.mask.box for part in found]
    assert (22, 10, 39, 22) in boxes
    assert (62, 10, 78, 22) in boxes


def test_the_score_of_an_object_put_together_is_the_mean_by_area():
    tiles = grid(32, 56, tile=32, overlap=0.25)
    bar = (0, rectangle(32, 56, 2, 8, 54, 16))
    scores = (0.9, 0.5)
    (found,) = merge(tiles, parts_of(tiles, [bar], score=lambda tile, _: scores[tile]))
    areas = [part.mask.area for part in parts_of(tiles, [bar])]
    assert found.score == pytest.approx(np.average(scores, weights=areas))
    assert found.mask.area == bar[1].sum()


def test_pixels_of_a_seam_are_decided_by_the_tile_that_has_them_farther_inside():
    tiles = grid(32, 56, tile=32, overlap=0.25)  # x 0 to 32 and 24 to 56; the border between their own parts is 28
    bar = rectangle(32, 56, 2, 8, 54, 16)
    frayed = bar.copy()
    frayed[12:, 28:32] = False  # the first tile is wrong near its edge
    parts = [*_at(0, tiles, frayed, 0.9), *_at(1, tiles, bar, 0.9)]
    (found,) = merge(tiles, parts)
    assert np.array_equal(masks_of([found], 32, 56)[0][1], bar)


def with_whole(tiles, height, width):
    picture = Rect(0, 0, width, height)
    return [*tiles, Tile(picture, Rect(0, 0, 0, 0), picture)]


def test_the_picture_as_a_whole_gives_what_no_tile_sees_whole(tiles):
    large = (0, rectangle(HEIGHT, WIDTH, 5, 5, 75, 55))
    small = (1, rectangle(HEIGHT, WIDTH, 5, 56, 15, 60))
    views = with_whole(tiles, HEIGHT, WIDTH)
    whole = len(tiles)
    found_by_whole = parts_of(views, [large, small], score=lambda tile, _: 0.7 if tile == whole else 0)
    # the tiles have pieces of the large one only, which the rule cannot make one of
    pieces = [rectangle(HEIGHT, WIDTH, 5, 5, 75, 12), rectangle(HEIGHT, WIDTH, 5, 30, 75, 55)]
    of_tiles = parts_of(tiles, [small, *((0, piece) for piece in pieces)])
    best, other = merge(views, [*found_by_whole, *of_tiles])
    assert (best.label, best.score) == (1, pytest.approx(0.9))
    assert best.tile < whole
    assert (other.label, other.score, other.tile) == (0, pytest.approx(0.7), whole)
    assert other.mask.area == large[1].sum()


def test_what_lies_on_an_object_that_the_picture_as_a_whole_gives_stays(tiles):
    large = (0, rectangle(HEIGHT, WIDTH, 5, 5, 75, 55))
    on_it = (1, rectangle(HEIGHT, WIDTH, 20, 12, 58, 44))  # no tile sees it whole, either
    views = with_whole(tiles, HEIGHT, WIDTH)
    assert same(merge(views, [*_at(len(tiles), views, large[1], 0.9), *parts_of(tiles, [on_it])]), [large, on_it])


def test_the_picture_as_a_whole_does_not_count_as_a_tile_that_does_not_find(tiles):
    small = (1, rectangle(HEIGHT, WIDTH, 2, 2, 12, 12))
    views = with_whole(tiles, HEIGHT, WIDTH)
    (found,) = merge(views, parts_of(tiles, [small]))
    assert found.score == pytest.approx(0.9)


def test_nothing_found():
    assert merge(grid(40, 60, tile=40, overlap=0.5), []) == []


def _at(index, tiles, mask, score, label=0):
    views = parts_of(tiles, [(label, mask)], score=lambda tile, _: score if tile == index else 0)
    return [Part(part.tile, part.label, part.score, 50 + index, part.mask) for part in views]
