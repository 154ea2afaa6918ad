import numpy as np
import pytest
from reference import full_size_logits

from m2f.contract import InputError
from m2f.label_maps import FullSizeLogits, check_size, sigmoid, stack_maps


@pytest.mark.parametrize("max_pixels", [1, 150, 1000, 1 << 20])
def test_blocks_are_the_rows_of_the_full_size_logits(max_pixels):
    mask_logits = np.random.default_rng(0).normal(0, 5, (3, 9, 14)).astype(np.float32)
    logits = FullSizeLogits(mask_logits, padded=(36, 56), valid=(33, 50), original=(71, 65))
    blocks = list(logits.blocks(max_pixels))
    want = full_size_logits(mask_logits, (33, 50), (71, 65))
    assert [row for block in blocks for row in range(71)[block.rows]] == list(range(71))
    for block in blocks:
        for query in range(3):
            got = block.weights @ block.cells[query]
            np.testing.assert_allclose(got, want[query, block.rows], atol=1e-4)
            assert got.shape == block.shape
            assert got.size <= max(max_pixels, 65)


@pytest.mark.filterwarnings("error")
def test_sigmoid_of_any_float():
    logits = np.array([-np.inf, -1e4, -100, -1, 0, 1, 100, 1e4, np.inf], np.float32)
    want = [0, 0, 0, 0.26894142, 0.5, 0.7310586, 1, 1, 1]
    np.testing.assert_allclose(sigmoid(logits), want, rtol=1e-6, atol=1e-30)


def test_a_batch_is_padded_to_the_largest():
    maps = [np.ones((2, 5), np.int32), np.full((4, 3), 7, np.int32)]
    stacked = stack_maps(maps, -1)
    assert stacked.shape == (2, 4, 5)
    assert stacked.dtype == np.int32
    for image, each in zip(stacked, maps, strict=True):
        height, width = each.shape
        np.testing.assert_array_equal(image[:height, :width], each)
        assert (image == -1).sum() == 20 - each.size


def test_one_image_is_not_copied():
    assert np.shares_memory(stack_maps([only := np.zeros((2, 3), np.int32)], 0), only)


def test_more_than_a_gigabyte_is_refused():
    check_size("panoptic", [(16384, 16384)])
    with pytest.raises(InputError, match=r"'panoptic' would take 1073807360 bytes \(1 x 16385 x 16384 x 4\); allowed"):
        check_size("panoptic", [(16385, 16384)])
    with pytest.raises(InputError, match=r"\(2 x 16384 x 9000 x 4\)"):
        check_size("semantic", [(16384, 10), (10, 9000)])
