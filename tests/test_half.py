"""Logits in half precision give what the same numbers give in single precision, bit for bit."""

import numpy as np
import pytest
from logits import blobs
from scenes import scenes

from m2f.geometry import ImageGeometry
from m2f.half import single_precision
from m2f.kernels import BEST, KERNELS
from m2f.logits import ImageLogits
from m2f.masks import sample_masks
from m2f.panoptic import panoptic
from m2f.postprocess import postprocess
from m2f.profiles import PROFILES
from m2f.semantic import semantic
from m2f.settings import Settings

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
CLS, MASKS = (logits.astype(np.float16) for logits in blobs(np.random.default_rng(0)))
SIZES = {"img_shape": (90, 120), "ori_shape": (70, 50)}
IN_HALF, IN_SINGLE = (ImageLogits(CLS.astype(kind), MASKS.astype(kind), **SIZES) for kind in (np.float16, np.float32))
KINDS = pytest.mark.parametrize("kernel", KERNELS, ids=str)


@KINDS
@pytest.mark.parametrize("step", [1, 3])
def test_every_number_is_exact(kernel, step):
    halves = EVERY_HALF[::step]
    with np.errstate(invalid="ignore"):
        want = halves.astype(np.float32)
    got = single_precision(halves, kernel)
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(got[numbers].view(np.uint32), want[numbers].view(np.uint32))
    assert np.isnan(got[~numbers]).all()


def test_single_precision_is_not_copied():
    logits = MASKS.astype(np.float32)
    assert single_precision(logits) is logits


@KINDS
@pytest.mark.parametrize("semantics", PROFILES)
def test_the_same_instances(kernel, semantics):
    got, want = (postprocess(image, Settings(semantics=semantics), kernel=kernel) for image in (IN_HALF, IN_SINGLE))
    assert len(want.rle) > 3
    assert got.rle == want.rle
    np.testing.assert_array_equal(got.scores, want.scores)
    np.testing.assert_array_equal(got.queries, want.queries)


@KINDS
def test_the_same_masks_of_odd_scenes(kernel):
    for kind, mask_logits, img_shape, ori_shape in scenes(seed=0, count=20):
        with np.errstate(over="ignore"):
            halves = mask_logits.astype(np.float16)
        operator = kernel.operator(ImageGeometry.of(halves.shape[1:], img_shape=img_shape, ori_shape=ori_shape))
        queries = np.arange(len(halves))[::-1]
        with np.errstate(invalid="ignore"):
            got, want = (
                sample_masks(logits, queries, operator, kernel=kernel) for logits in (halves, halves.astype(np.float32))
            )
        np.testing.assert_array_equal(got.areas, want.areas, err_msg=kind)
        np.testing.assert_array_equal(got.scores, want.scores, err_msg=kind)
        assert [got.rle(i) for i in range(len(got))] == [want.rle(i) for i in range(len(want))], kind


@pytest.mark.parametrize("semantics", PROFILES)
def test_the_same_panoptic_segments(semantics):
    settings = Settings(semantics=semantics)
    got, want = (panoptic(image, settings) for image in (IN_HALF, IN_SINGLE))
    np.testing.assert_array_equal(got.ids, want.ids)
    assert got.segments == want.segments


@pytest.mark.parametrize("resized", ["logits", "scores"])
def test_the_same_semantic_classes(resized):
    settings = Settings(semantic_resize=resized)
    got, want = (semantic(image, settings, kernel=BEST) for image in (IN_HALF, IN_SINGLE))
    np.testing.assert_array_equal(got, want)
