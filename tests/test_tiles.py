"""Tiles: they cover the picture, overlap as asked, and each pixel is one tile's own."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from m2f.errors import InputError
from m2f.tiles import MAX_TILES, grid


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 100), st.floats(0, 0.95))
def test_the_grid_covers_the_picture(height, width, tile, overlap):
    assume(tile * (1 - overlap) >= 2)
    tiles = grid(height, width, tile=tile, overlap=overlap)
    seen, own = np.zeros((height, width), int), np.zeros((height, width), int)
    for one in tiles:
        x1, y1, x2, y2 = one.rect
        assert (x2 - x1, y2 - y1) == (min(tile, width), min(tile, height))
        seen[y1:y2, x1:x2] += 1
        own[one.own.y1 : one.own.y2, one.own.x1 : one.own.x2] += 1
        assert one.rect.intersection(one.own) == one.own
    assert seen.min() >= 1
    assert own.min() == own.max() == 1, "each pixel is one tile's own"
    columns = sorted({(one.rect.x1, one.rect.x2) for one in tiles})
    shared = [end - begin for (_, end), (begin, _) in pairwise(columns)]
    assert all(pixels >= tile * overlap - 1e-9 for pixels in shared)


def test_a_pixel_is_own_to_the_tile_that_has_it_farthest_from_its_edges():
    first, second = grid(10, 15, tile=10, overlap=0.5)
    assert (first.rect, second.rect) == ((0, 0, 10, 10), (5, 0, 15, 10))
    assert (first.own, second.own) == ((0, 0, 7, 10), (7, 0, 15, 10))


def test_too_many_tiles_are_refused():
    with pytest.raises(InputError, match=rf"1000 x 1000 tiles are too many; allowed are {MAX_TILES}"):
        grid(1000, 1000, tile=1, overlap=0)
