import numpy as np
import pytest
from reference import full_size_logits

from m2f.errors import InputError
from m2f.kernels import KERNELS
from m2f.label_maps import check_size, probability_blocks, stack_maps
from m2f.logits import ImageLogits
from m2f.numpy_kernel import sigmoid


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("max_values", [1, 300, 2000, 1 << 20])
@pytest.mark.parametrize(("img_shape", "ori_shape"), [((33, 50), (71, 65)), ((36, 50), (36, 50)), ((1, 1), (9, 7))])
def test_blocks_are_the_rows_of_the_full_size_probabilities(kernel, max_values, img_shape, ori_shape):
    mask_logits = np.random.default_rng(0).normal(0, 5, (3, 9, 14)).astype(np.float32)
    image = ImageLogits(np.zeros((3, 2), np.float32), mask_logits, img_shape=img_shape, ori_shape=ori_shape)
    want = 1 / (1 + np.exp(-full_size_logits(mask_logits, img_shape, ori_shape)))[[2, 0]]
    height, width = ori_shape
    rows_seen = []
    for rows, probabilities in probability_blocks(image, np.array([2, 0]), kernel, max_values=max_values):
        rows_seen += range(height)[rows]
        np.testing.assert_allclose(probabilities, want[:, rows], atol=1e-5)
        assert probabilities.size <= max(max_values, 2 * width)
    assert rows_seen == list(range(height))


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_logits_that_are_sure_infinite_or_no_number(kernel):
    """Sure ones are told apart as long as float32 can; NaN is far outside, and spoils no neighbour."""
    logits = np.array([[[-np.inf, -80, -20, 0, 20, np.inf, np.nan]]], np.float32)
    cls_logits = np.zeros((1, 2), np.float32)
    image = ImageLogits(cls_logits, logits, img_shape=(1, 7), ori_shape=(1, 7), mask_stride=1)
    with np.errstate(invalid="ignore"):
        ((_, found),) = probability_blocks(image, np.array([0]), kernel, max_values=100)
    np.testing.assert_allclose(found[0, 0, 1:5], 1 / (1 + np.exp([80, 20, 0, -20])), rtol=1e-5)
    assert (found[0, 0, [0, 6]] < 1e-37).all()
    assert found[0, 0, 5] == 1


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


def test_more_than_256_mib_is_refused():
    check_size("panoptic", [(8192, 8192)])  # the largest image that there may be
    with pytest.raises(
        InputError, match=r"'panoptic' would take 268468224 bytes \(1 x 8193 x 8192 x 4\); allowed are 26"
    ):
        check_size("panoptic", [(8193, 8192)])
    with pytest.raises(InputError, match=r"\(2 x 8192 x 4500 x 4\)"):
        check_size("semantic", [(8192, 10), (10, 4500)])
