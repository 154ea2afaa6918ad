"""Every kernel against mmdetection, pixel by pixel, on thousands of scenes (`make test-exact`; some of them always)."""

from collections import Counter

import mmdet_head
import numpy as np
import pytest
from scenes import QUERIES, scenes

from m2f.kernels import KERNELS
from m2f.logits import ImageLogits
from m2f.postprocess import postprocess
from m2f.rle import decode
from m2f.settings import Settings

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def mmdet_masks():
    """A function: mask logits -> mmdetection's (scores [Q], masks [Q, H, W]), in the order of the queries."""
    predict = mmdet_head.load()
    import torch

    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("PyTorch rounds in another order on this processor: see m2f.interpolate")

    def run(*image):
        found = predict.instances(*image, max_per_image=QUERIES)
        order = found.labels.argsort()
        return found.scores[order].numpy(), found.masks[order].numpy()

    return run


def class_of_its_own(rng):
    """Class logits [Q, Q + 1] whose best Q candidates are query i as class i, so that a label says which query."""
    logits = np.full((QUERIES, QUERIES + 1), -40, np.float32)
    np.fill_diagonal(logits, 0)
    logits[:, -1] = rng.normal(0, 2, QUERIES)
    return logits


def compare(mmdet_masks, count, seed):
    """Hold every kernel against mmdetection; returns pixels seen, and those that differ, by kernel and kind."""
    pixels, differing, rng = 0, Counter(), np.random.default_rng(seed)
    for kind, mask_logits, img_shape, ori_shape in scenes(seed, count):
        cls_logits = class_of_its_own(rng)
        scores, masks = mmdet_masks(cls_logits, mask_logits, img_shape, ori_shape)
        pixels += masks.size
        for kernel in KERNELS:
            with np.errstate(invalid="ignore"):
                got = postprocess(
                    ImageLogits(cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape),
                    Settings(pre_top_k=QUERIES),
                    kernel=kernel,
                )
            assert sorted(got.queries.tolist()) == list(range(QUERIES))
            assert np.isfinite(got.scores).all()
            for query, score, rle in zip(got.queries.tolist(), got.scores.tolist(), got.rle, strict=True):
                wrong = decode(rle, *ori_shape).astype(bool) != masks[query]
                if wrong.any():
                    differing[kernel, kind] += int(wrong.sum())
                elif np.isfinite(scores[query]):
                    assert score == pytest.approx(scores[query], abs=1e-5)
    return pixels, differing


def check(pixels, differing):
    report = f"of {pixels} pixels differ, by kernel and kind: {dict(differing)}"
    print(report)
    assert not differing, report


def test_some_scenes(mmdet_masks):
    check(*compare(mmdet_masks, 120, seed=1))


@pytest.mark.exact
@pytest.mark.timeout(3600)
def test_ten_thousand_scenes(mmdet_masks):
    check(*compare(mmdet_masks, 10_000, seed=2))
