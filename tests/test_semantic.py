import numpy as np
import pytest
from logits import SIZES, blobs
from memory import peak_of
from reference_maps import mask_probabilities, semantic_scores

from m2f.kernels import BEST, NUMPY
from m2f.logits import ImageLogits
from m2f.semantic import semantic, values_per_pixel
from m2f.settings import Settings

WAYS = (BEST, NUMPY)


def check_equal(cls_logits, mask_logits, img_shape, ori_shape, stride=4):
    """Equal to the slow reference; where two classes are within float32's rounding, either may win."""
    image = ImageLogits(cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape, mask_stride=stride)
    want = semantic_scores(cls_logits, mask_probabilities(mask_logits, img_shape, ori_shape, stride))
    different = []
    for kernel in WAYS:
        got = semantic(image, Settings(), kernel=kernel)
        assert got.dtype == np.int32
        assert got.shape == ori_shape
        lost = want.max(0) - np.take_along_axis(want, got[None], 0)[0]
        assert lost.max() < 1e-5
        different.append((got != want.argmax(0)).mean())
    return max(different)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("seed", range(2))
def test_equal_on_every_kind_of_size(name, seed):
    cells, img_shape, ori_shape = SIZES[name]
    check_equal(*blobs(np.random.default_rng(seed), cells=cells), img_shape, ori_shape)


def test_equal_on_random_sizes():
    rng = np.random.default_rng(8)
    different = []
    for _ in range(60):
        cells = tuple(rng.integers(1, 24, 2).tolist())
        img_shape = tuple(int(rng.integers(1, 4 * n + 1)) for n in cells)
        ori_shape = tuple(rng.integers(1, 120, 2).tolist())
        queries, classes = int(rng.integers(1, 9)), int(rng.integers(1, 7))
        logits = blobs(rng, queries=queries, classes=classes, cells=cells, objects=min(queries, 4))
        different.append(check_equal(*logits, img_shape, ori_shape))
    assert np.mean(different) < 1e-5


def test_masks_of_another_stride():
    logits = blobs(np.random.default_rng(3), cells=(40, 56))
    check_equal(*logits, (37, 50), (61, 83), stride=1)


@pytest.fixture(params=WAYS, ids=str)
def run(request):
    """A function: logits of 3 x 3 cells -> the class of each pixel."""

    def run(cls_logits, mask_logits, **settings):
        image = ImageLogits(cls_logits, mask_logits, img_shape=(12, 12), ori_shape=(12, 12))
        return semantic(image, Settings(**settings), kernel=request.param)

    return run


def test_among_equals_the_first_class_wins(run):
    cls_logits, mask_logits = np.zeros((2, 4), np.float32), np.zeros((2, 3, 3), np.float32)
    assert (run(cls_logits, mask_logits) == 0).all()
    cls_logits[:, 1:3] = 2
    assert (run(cls_logits, mask_logits) == 1).all()


def test_no_object_first(run):
    cls_logits, mask_logits = blobs(np.random.default_rng(4), cells=(3, 3))
    first = np.roll(cls_logits, 1, axis=1)
    np.testing.assert_array_equal(run(first, mask_logits, background_label_id=0), run(cls_logits, mask_logits))


@pytest.mark.filterwarnings("error")
def test_logits_that_are_no_numbers_spoil_only_their_own_query(run):
    cls_logits, mask_logits = blobs(np.random.default_rng(5), cells=(3, 3))
    far = mask_logits.copy()
    far[2] = -1e4
    mask_logits[2] = np.nan
    np.testing.assert_array_equal(run(cls_logits, mask_logits), run(cls_logits, far))
    mask_logits[2], far[2] = np.inf, 1e4
    np.testing.assert_array_equal(run(cls_logits, mask_logits), run(cls_logits, far))


@pytest.mark.parametrize("kernel", WAYS, ids=str)
def test_memory_beyond_the_answer_is_bounded(kernel):
    cls_logits, mask_logits = blobs(np.random.default_rng(6), queries=20, classes=5, cells=(64, 64))
    image = ImageLogits(cls_logits, mask_logits, img_shape=(256, 256), ori_shape=(2000, 2000))
    classes, peak = peak_of(lambda: semantic(image, Settings(), kernel=kernel))
    assert peak - classes.nbytes < 32 << 20


@pytest.mark.parametrize("kernel", WAYS, ids=str)
def test_memory_is_bounded_whatever_the_classes(kernel):
    cls_logits, mask_logits = np.zeros((1, 10_001), np.float32), np.ones((1, 4, 4), np.float32)
    cls_logits[0, 7_000] = 1
    image = ImageLogits(cls_logits, mask_logits, img_shape=(16, 16), ori_shape=(64, 200))
    classes, peak = peak_of(lambda: semantic(image, Settings(), kernel=kernel))
    assert (classes == 7_000).all()
    assert peak < 32 << 20


@pytest.mark.parametrize(("queries", "classes", "values"), [(100, 80, 125), (100, 5, 100), (1, 900, 900)])
def test_a_pixel_costs_its_queries_its_classes_or_their_product(queries, classes, values):
    assert values_per_pixel(queries, classes) == values


def resized_scores(cls_logits, mask_logits, img_shape, ori_shape):
    """The slow reference of `semantic_resize=scores`: [C, H, W] by torch, in float64."""
    import torch

    def resize(values, size):
        return torch.nn.functional.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]

    classes, masks = (torch.from_numpy(values).double() for values in (cls_logits, mask_logits))
    padded = resize(masks, tuple(4 * side for side in masks.shape[1:])).sigmoid()
    scores = torch.einsum("qc,qhw->chw", classes.softmax(-1)[:, :-1], padded)
    return resize(scores[:, : img_shape[0], : img_shape[1]], ori_shape).numpy()


@pytest.mark.torch
@pytest.mark.parametrize("kernel", WAYS, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_scores_are_resized_where_asked(name, kernel):
    cells, img_shape, ori_shape = SIZES[name]
    logits = blobs(np.random.default_rng(7), cells=cells)
    image = ImageLogits(*logits, img_shape=img_shape, ori_shape=ori_shape)
    got = semantic(image, Settings(semantic_resize="scores"), kernel=kernel)
    want = resized_scores(*logits, img_shape, ori_shape)
    lost = want.max(0) - np.take_along_axis(want, got[None].astype(np.int64), 0)[0]
    assert (got.dtype, got.shape) == (np.int32, ori_shape)
    assert lost.max() < 1e-5


def test_the_order_of_resizing_is_immaterial_at_the_inputs_size(run):
    logits = blobs(np.random.default_rng(9), cells=(3, 3))
    np.testing.assert_array_equal(run(*logits, semantic_resize="scores"), run(*logits))


@pytest.mark.parametrize(("queries", "classes", "size"), [(20, 5, (1500, 1500)), (1, 3_000, (64, 200))])
def test_memory_is_bounded_where_scores_are_resized(queries, classes, size):
    logits = blobs(np.random.default_rng(6), queries=queries, classes=classes, cells=(32, 32), objects=1)
    image = ImageLogits(*logits, img_shape=(128, 128), ori_shape=size)
    found, peak = peak_of(lambda: semantic(image, Settings(semantic_resize="scores")))
    assert peak - found.nbytes < 32 << 20
