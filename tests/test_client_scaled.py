import numpy as np
import pytest

from m2f.runs import Rect, Runs
from m2f_client import Result, ServerError
from m2f_client.fake import result_of
from m2f_client.scaled import scaled

ROWS = ("scores", "labels", "boxes", "rle", "size")


def test_each_pixel_is_the_one_at_its_centre():
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 40, 2)
        small_height, small_width = rng.integers(1, height + 1), rng.integers(1, width + 1)
        masks = rng.random((2, height, width)) < rng.choice([0.1, 0.5, 0.9])
        small = scaled(result_of(masks), (small_width, small_height))
        rows = (np.arange(small_height) + 0.5) * height / small_height
        columns = (np.arange(small_width) + 0.5) * width / small_width
        np.testing.assert_array_equal(small.masks, masks[:, rows.astype(int)][:, :, columns.astype(int)])


def test_instances_are_where_they_were_in_a_larger_image():
    masks = np.zeros((3, 3000, 4000), bool)
    masks[0, 1000:2000, 3000:] = True
    masks[1, 7, 9] = True  # less than a pixel of the picture; the third is empty
    result = result_of(masks)
    small = scaled(result, (1600, 1200))
    assert small.size == (1200, 1600)
    assert small.boxes.tolist() == [[1200, 400, 1600, 800], [3, 2, 4, 4], [0, 0, 0, 0]]
    assert small.mask(0).sum() == 400 * 400
    assert small.mask(0)[400:800, 1200:].all()
    assert small.scores.tolist() == result.scores.tolist()
    assert small.labels.tolist() == result.labels.tolist()


def test_a_picture_whose_mask_would_take_ten_gigabytes():
    side = 100_000
    columns = np.arange(90_000, 95_000)
    mask = Runs(columns, np.full(5000, 20_000), np.full(5000, 30_000))
    rle = np.empty(1, np.object_)
    rle[0] = mask.rle(side, side)
    rows = {"scores": np.ones(1, np.float32), "labels": np.zeros(1, np.int32), "rle": rle}
    boxes = np.array([mask.box], np.float32)
    result = Result({**rows, "boxes": boxes, "size": np.array([side, side], np.int32)})
    small = scaled(result, (1000, 1000))
    assert Runs.of_rle(small.rle[0], 1000, 1000).box == Rect(900, 200, 950, 300)
    assert small.boxes.tolist() == [[900, 200, 950, 300]]


def test_an_image_of_that_size_stays_as_it_is():
    result = result_of(np.ones((1, 4, 4), bool))
    assert scaled(result, (4, 4)) is result


def test_no_instances_and_no_masks():
    assert scaled(result_of(np.zeros((0, 40, 40), bool)), (4, 4)).masks.shape == (0, 4, 4)
    boxes_only = result_of(np.ones((1, 40, 40), bool))
    boxes_only.outputs["rle"][0] = b""
    small = scaled(Result({name: boxes_only.outputs[name] for name in ROWS}), (4, 4))
    assert small.boxes.tolist() == [[0, 0, 4, 4]]
    assert not small.has_masks


def test_rle_that_is_none():
    result = result_of(np.ones((1, 40, 40), bool))
    result.outputs["rle"][0] = b"no"
    with pytest.raises(ServerError, match="cannot be decoded"):
        scaled(result, (4, 4))
