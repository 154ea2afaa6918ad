"""Masks of annotation files: the same as pycocotools draws, for all that is accepted."""

import numpy as np
import pytest
from coco_data import ellipse, rle, uncompressed
from pycocotools import mask as coco_mask

from m2f_client.evaluation import segmentation
from m2f_client.evaluation.fields import InvalidDataset, Row
from m2f_client.evaluation.segmentation import is_compressed_rle, to_rle


def read(value, size):
    found = to_rle(Row("file: annotations[0]", {"segmentation": value}), size)
    return coco_mask.decode(found)


def test_polygons_are_drawn_as_pycocotools_draws_them():
    """Inside, across the edges, far outside, of one point, and several at once; whole numbers and fractions."""
    rng = np.random.default_rng(3)
    for index in range(120):
        height, width = (int(side) for side in rng.integers(1, 90, 2))
        spread = [1, 1.5, 5, 100][index % 4]
        polygons = []
        for _ in range(rng.integers(1, 4)):
            corners = rng.uniform(-spread + 0.5, spread + 0.5, (rng.integers(3, 9), 2)) * (width, height)
            corners = corners.clip(-131070, 131070)
            polygons.append((corners.round() if index % 3 else corners).ravel().tolist())
        if index % 10 == 0:
            polygons.append([5.0] * 6)
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        np.testing.assert_array_equal(read(polygons, (height, width)), expected)


def test_both_forms_of_rle_are_the_mask():
    rng = np.random.default_rng(4)
    masks = [ellipse((60, 80), rng.uniform(0, 80, 2), rng.uniform(1, 50, 2)) for _ in range(50)]
    for mask in [*masks, np.zeros((60, 80), np.uint8), np.ones((60, 80), np.uint8)]:
        compressed = rle(mask)
        for either in (compressed, uncompressed(compressed)):
            np.testing.assert_array_equal(read(either, (60, 80)), mask)
        assert is_compressed_rle(compressed["counts"], (60, 80))
        assert not is_compressed_rle(compressed["counts"], (60, 81))


@pytest.mark.parametrize("counts", [[100] * 48, "d3" * 24])
def test_an_rle_that_is_too_long_is_not_read(monkeypatch, counts):
    monkeypatch.setattr(segmentation, "MAX_COUNTS", 47)
    with pytest.raises(InvalidDataset, match=r"segmentation\.counts has the length 48; allowed are 47$"):
        read({"size": [60, 80], "counts": counts}, (60, 80))


@pytest.mark.parametrize("counts", [[4800, 0], [0, 0, 4800], [10, 0, 0, 0, 4790], [0, 4800]])
def test_lengths_of_zero(counts):
    expected = np.repeat(np.arange(len(counts)) % 2, counts).reshape(80, 60).T
    np.testing.assert_array_equal(read({"size": [60, 80], "counts": counts}, (60, 80)), expected)
