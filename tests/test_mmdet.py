"""The core against mmdetection's own code: `MaskFormerFusionHead` and the head's upsampling, unchanged."""

import mmdet_head
import numpy as np
import pytest
from logits import SIZES, blobs
from pycocotools import mask as coco

from m2f.logits import ImageLogits
from m2f.postprocess import postprocess
from m2f.settings import Settings

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def mmdet_instances():
    """A function: logits -> mmdetection's results, sorted by score, masks as COCO RLE."""
    predict = mmdet_head.load()

    def run(cls_logits, mask_logits, img_shape, ori_shape):
        most = min(100, cls_logits.shape[0] * (cls_logits.shape[1] - 1))
        result = predict.instances(cls_logits, mask_logits, img_shape, ori_shape, max_per_image=most)
        result = result[result.scores.argsort(descending=True, stable=True)]
        rle = [coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))["counts"] for mask in result.masks]
        return result.scores.numpy(), result.labels.numpy(), result.bboxes.numpy(), rle

    return run


def check_equal(mmdet_instances, cls_logits, mask_logits, img_shape, ori_shape):
    """0 differing pixels, equal boxes and labels, scores within 1e-5."""
    got = postprocess(ImageLogits(cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape), Settings())
    scores, labels, boxes, rle = mmdet_instances(cls_logits, mask_logits, img_shape, ori_shape)
    np.testing.assert_allclose(got.scores, scores, atol=1e-5)
    # scores that differ in the last bit may change places, so rows are matched by all they say
    ours = sorted(zip(got.labels.tolist(), got.rle, got.boxes.tolist(), strict=True))
    theirs = sorted(zip(labels.tolist(), rle, boxes.tolist(), strict=True))
    assert ours == theirs


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("seed", range(2))
def test_equal_on_every_kind_of_size(mmdet_instances, name, seed):
    cells, img_shape, ori_shape = SIZES[name]
    cls_logits, mask_logits = blobs(np.random.default_rng(100 + seed), cells=cells)
    check_equal(mmdet_instances, cls_logits, mask_logits, img_shape, ori_shape)


@pytest.mark.parametrize("noise", [0.0, pytest.param(5.0, marks=pytest.mark.more)])
def test_equal_at_the_size_of_coco_models(mmdet_instances, noise):
    cls_logits, mask_logits = blobs(
        np.random.default_rng(7), queries=100, classes=80, cells=(200, 336), objects=15, noise=noise
    )
    cls_logits[15:, -1] += 20  # the best 100 candidates are those of 15 queries
    check_equal(mmdet_instances, cls_logits, mask_logits, (800, 1333), (427, 640))


def test_equal_on_random_sizes(mmdet_instances):
    rng = np.random.default_rng(8)
    for _ in range(25):
        cells = tuple(rng.integers(1, 30, 2).tolist())
        img_shape = tuple(int(rng.integers(1, 4 * n + 1)) for n in cells)
        ori_shape = tuple(rng.integers(1, 200, 2).tolist())
        cls_logits, mask_logits = blobs(rng, cells=cells, queries=8, objects=4)
        check_equal(mmdet_instances, cls_logits, mask_logits, img_shape, ori_shape)
