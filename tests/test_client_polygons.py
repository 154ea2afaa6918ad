"""Polygons of masks, held against shapely: valid, exact, and of the pieces and holes that the mask has."""

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from m2f.rle import encode_mask
from m2f.runs import Runs
from m2f_client.converters.polygons import trace
from m2f_client.fake import result_of

masks_of_any_kind = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 13), st.integers(1, 11)),
    elements=st.integers(0, 1),
    fill=st.integers(0, 1),
)


def mask_of(*rows):
    return np.array([[int(c == "#") for c in row] for row in rows], np.uint8)


def runs_of(mask):
    return Runs.of_rle(encode_mask(mask), *mask.shape)


def filled(polygons, shape):
    """Rasterise by the centres of the pixels, with shapely."""
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    return shapely.contains_xy(shapely.MultiPolygon([shapely.Polygon(*polygon) for polygon in polygons]), x, y)


def assert_exact(mask, polygons):
    shapes = [shapely.Polygon(*polygon) for polygon in polygons]
    together = shapely.MultiPolygon(shapes)
    assert all(shape.is_valid for shape in shapes)
    assert together.is_valid, shapely.is_valid_reason(together)
    assert together.area == mask.sum()
    assert np.array_equal(filled(polygons, mask.shape), mask)
    assert all(shape.exterior.is_ccw and not any(hole.is_ccw for hole in shape.interiors) for shape in shapes)


@given(masks_of_any_kind)
@settings(deadline=None, max_examples=300)
def test_any_mask_comes_back_exactly(mask):
    polygons = trace(runs_of(mask))
    assert_exact(mask, polygons)
    assert len(polygons) == cv2.connectedComponents(mask, connectivity=4)[0] - 1
    for ring in (ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)):
        steps = np.roll(ring, -1, axis=0) - ring
        assert ring.dtype == np.int32
        assert ((steps == 0).sum(axis=1) == 1).all()  # along pixel edges
        assert ((steps[:, 0] == 0) != (np.roll(steps, -1, axis=0)[:, 0] == 0)).all()  # and every point is a corner
        assert len(np.unique(ring, axis=0)) == len(ring)  # it never touches itself


@pytest.mark.parametrize("density", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_noise(density):
    mask = (np.random.default_rng(0).random((90, 120)) < density).astype(np.uint8)
    assert_exact(mask, trace(runs_of(mask)))


@pytest.mark.parametrize(
    ("rows", "points", "holes"),
    [
        (["#"], [4], [0]),
        (["...", "..."], [], []),
        (["##", "##"], [4], [0]),
        (["#.", ".#"], [4, 4], [0, 0]),  # a corner does not join
        ([".#", "#."], [4, 4], [0, 0]),
        (["###", "#.#", "###"], [4], [1]),
        (["###", "#.#", "##."], [6], [1]),  # the hole touches the outside at a corner
        ([".##", "#.#", "###"], [6], [1]),
        (["####", "#.##", "##.#", "####"], [4], [2]),  # two holes that touch
        (["####", "##.#", "#.##", "####"], [4], [2]),
        (["#####", "#...#", "#.#.#", "#...#", "#####"], [4, 4], [1, 0]),  # an island in a hole
        (["#####", "##.##", "#.#.#", "##.##", "#####"], [4, 4], [1, 0]),  # and one that touches the hole's corners
        (["#.#", ".#.", "#.#"], [4] * 5, [0] * 5),
    ],
)
def test_pieces_corners_and_holes(rows, points, holes):
    polygons = trace(runs_of(mask_of(*rows)))
    assert [len(polygon.exterior) for polygon in polygons] == points
    assert [len(polygon.holes) for polygon in polygons] == holes
    assert_exact(mask_of(*rows), polygons)


def test_the_square_of_a_pixel():
    mask = np.zeros((5, 7), np.uint8)
    mask[3, 2] = 1  # row 3, column 2
    (polygon,) = trace(runs_of(mask))
    assert polygon.exterior.tolist() == [[2, 3], [3, 3], [3, 4], [2, 4]]


def test_of_a_result():
    masks = np.zeros((3, 6, 8))
    masks[0, 1:4, 2:5] = 1
    masks[2, 0, 0] = masks[2, 5, 7] = 1
    polygons = result_of(masks).polygons()
    assert [len(of_one) for of_one in polygons] == [1, 0, 2]
    for of_one, mask in zip(polygons, masks, strict=True):
        assert np.array_equal(filled(of_one, mask.shape), mask)


def test_a_mask_that_is_a_part_of_a_larger_array():
    whole = np.zeros((2, 9, 9), np.uint8)
    whole[:, 2:5, 1:3] = 1
    assert_exact(whole[1, :6, :5], trace(runs_of(whole[1, :6, :5])))
