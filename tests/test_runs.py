"""Masks as runs: each function against the same thing on dense pixels, and the RLE of pictures of any size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from m2f import rle
from m2f.errors import InputError
from m2f.kernels import BEST
from m2f.runs import Rect, Runs, union

SIDE = 9
pixels = st.tuples(st.integers(1, SIDE), st.integers(1, SIDE), st.integers(0, 2**32), st.floats(0, 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).random((drawn[0], drawn[1])) < drawn[3]
)
rects = st.tuples(*[st.integers(-2, SIDE + 2)] * 4).map(lambda sides: Rect(*sides))


def runs(mask, x=0, y=0):
    return Runs.of_rle(rle.encode_mask(mask), *mask.shape, x=x, y=y)


def dense(mask, height, width):
    picture = np.zeros((height, width), np.int64)
    for column, begin, end in zip(mask.columns, mask.begins, mask.ends, strict=True):
        assert 0 <= begin < end
        picture[begin:end, column] += 1
    assert picture.max(initial=0) <= 1, "a pixel is in two runs"
    return picture.astype(bool)


@given(pixels, st.integers(0, 5), st.integers(0, 5))
def test_a_mask_of_a_tile_is_at_its_place_in_the_picture(mask, x, y):
    height, width = mask.shape
    shown = runs(mask, x, y)
    picture = dense(shown, height + y + 1, width + x + 1)
    assert np.array_equal(picture[y : y + height, x : x + width], mask)
    assert shown.area == picture.sum() == mask.sum()
    rows, columns = np.nonzero(picture)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if mask.any() else (0, 0, 0, 0)
    assert shown.box == box


@given(pixels, rects)
def test_inside_and_outside_divide_a_mask(mask, rect):
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    within = (columns >= rect.x1) & (columns < rect.x2) & (rows >= rect.y1) & (rows < rect.y2)
    assert np.array_equal(dense(runs(mask).inside(rect), *mask.shape), mask & within)
    assert np.array_equal(dense(runs(mask).outside(rect), *mask.shape), mask & ~within)


@given(st.lists(st.tuples(pixels, st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=4))
def test_union(masks):
    side = SIDE + 5
    expected = np.zeros((side, side), bool)
    for mask, x, y in masks:
        expected[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    joined = union([runs(*mask) for mask in masks])
    assert np.array_equal(dense(joined, side, side), expected)
    # as runs of an equal mask made in one piece
    assert joined.rle(side, side) == rle.encode_mask(expected)


@given(pixels, pixels, st.integers(0, 4), st.integers(0, 4))
def test_the_kernel_reads_the_edges_of_a_part(mask, other, x, y):
    first, second = runs(mask), runs(other, x, y)
    part = Rect(0, 0, SIDE, SIDE)
    shared = dense(first, SIDE + 4, SIDE + 4) & dense(second, SIDE + 4, SIDE + 4)
    inside = [side.inside(part).edges(part) for side in (first, second)]
    assert BEST.intersection(*inside) == shared[:SIDE, :SIDE].sum()


@given(pixels, st.integers(1, 4))
def test_a_pixel_becomes_a_square(mask, factor):
    larger = dense(runs(mask).enlarged(factor), mask.shape[0] * factor, mask.shape[1] * factor)
    assert np.array_equal(larger, np.kron(mask, np.ones((factor, factor), bool)))


@given(pixels, st.integers(0, 3), st.integers(0, 3))
def test_rle_is_that_of_pycocotools(mask, x, y):
    height, width = mask.shape[0] + y + 1, mask.shape[1] + x + 1
    picture = np.zeros((height, width), np.uint8, order="F")
    picture[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    assert runs(mask, x, y).rle(height, width) == coco_mask.encode(picture)["counts"]


def test_a_run_over_the_bottom_goes_on_at_the_top_of_the_next_column():
    assert runs(np.ones((3, 2), bool)).rle(3, 2) == rle.encode_mask(np.ones((3, 2), bool))


@pytest.mark.parametrize("side", [65_536, 100_000])
def test_rle_of_a_picture_whose_pixels_32_bits_cannot_count(side):
    mask = np.zeros((40, 30), bool)
    mask[3:31, 5:22] = True
    placed = runs(mask, side - 30, side - 40)
    edges = rle.decode_edges(placed.rle(side, side), side, side)
    first = (side - 25) * side + side - 37
    assert edges.tolist() == [first + column * side + end for column in range(17) for end in (0, 28)]
    assert placed.box == (side - 25, side - 37, side - 8, side - 9)
    assert Runs.of_rle(placed.rle(side, side), side, side).area == 28 * 17


def test_damaged_rle_is_refused():
    with pytest.raises(InputError, match="RLE"):
        Runs.of_rle(b"0", 3, 4)
