import numpy as np
import pytest
from logits import SIZES, blobs
from peers import detectron2, huggingface, tao, tao_graph
from pycocotools import mask as coco
from reference import bilinear, softmax

from m2f.errors import InputError
from m2f.kernels import BEST, KERNELS
from m2f.logits import ImageLogits
from m2f.model_facts import ModelFacts
from m2f.postprocess import postprocess
from m2f.profiles import PROFILES, nearest_source
from m2f.rle import decode
from m2f.settings import Settings

torch_only = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
GRID = 384  # Hugging Face's
NEAR_ZERO = 2e-3  # float32 may round a logit this close to 0 to its other side


def run(cls_logits, mask_logits, semantics, *, img_shape, ori_shape, things=None, kernel=BEST, **changes):
    settings = Settings(**{"semantics": semantics, "pre_top_k": 100, **changes})
    return postprocess(
        ImageLogits(cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape),
        settings,
        ModelFacts(thing_classes=None if things is None else frozenset(things)),
        kernel=kernel,
    )


def check_equal(got, peer, boxes="of the masks"):
    """The same labels and masks to the pixel, scores within 1e-5. A query with two classes gives a mask twice."""
    rle = [coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in peer.masks]
    ours = sorted(zip(got.labels.tolist(), got.rle, got.scores.tolist(), strict=True))
    theirs = sorted(zip(peer.labels.tolist(), rle, peer.scores.tolist(), strict=True))
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    np.testing.assert_allclose([row[2] for row in ours], [row[2] for row in theirs], atol=1e-5)
    assert (np.diff(got.scores) <= 0).all()
    if boxes == "zeros":
        assert not got.boxes.any()
    else:
        filled = got.areas > 0
        sizes = (got.boxes[:, 2] - got.boxes[:, 0]) * (got.boxes[:, 3] - got.boxes[:, 1])
        assert (sizes[filled] >= got.areas[filled]).all()


def check_all(cls_logits, mask_logits, img_shape, ori_shape, kernel=BEST):
    """Every profile against the system it is named after."""
    sizes = {"img_shape": img_shape, "ori_shape": ori_shape}
    ours = {name: run(cls_logits, mask_logits, name, kernel=kernel, **sizes) for name in PROFILES}
    check_equal(ours["huggingface"], huggingface(cls_logits, mask_logits, ori_shape=ori_shape))
    check_equal(ours["detectron2"], detectron2(cls_logits, mask_logits, **sizes), "zeros")
    check_equal(ours["tao"], tao(cls_logits, mask_logits, **sizes))


class TestAgainstTheSystems:
    pytestmark = torch_only

    @pytest.mark.parametrize("kernel", KERNELS, ids=str)
    @pytest.mark.parametrize("name", SIZES)
    def test_equal_on_every_kind_of_size(self, name, kernel):
        cells, img_shape, ori_shape = SIZES[name]
        check_all(*blobs(np.random.default_rng(20), cells=cells), img_shape, ori_shape, kernel)

    def test_equal_on_random_sizes(self):
        rng = np.random.default_rng(21)
        for _ in range(10):
            cells = tuple(rng.integers(1, 30, 2).tolist())
            img_shape = tuple(int(rng.integers(1, 4 * n + 1)) for n in cells)
            ori_shape = tuple(rng.integers(1, 500, 2).tolist())
            check_all(*blobs(rng, cells=cells, queries=8, objects=4), img_shape, ori_shape)

    @pytest.mark.more
    @pytest.mark.parametrize("noise", [0.0, 5.0])
    def test_equal_at_the_size_of_coco_models(self, noise):
        cls_logits, mask_logits = blobs(
            np.random.default_rng(22), queries=100, classes=80, cells=(200, 336), objects=15, noise=noise
        )
        cls_logits[15:, [0, -1]] += 20  # the best pairs are those of 15 queries, wherever no-object is
        check_all(cls_logits, mask_logits, (800, 1333), (427, 640))

    @pytest.mark.parametrize("value", [-5.0, 0.0, 3.0])
    def test_equal_on_empty_and_full_masks(self, value):
        cls_logits = np.random.default_rng(23).normal(size=(3, 4)).astype(np.float32)
        check_all(cls_logits, np.full((3, 6, 7), value, np.float32), (24, 25), (31, 17))

    def test_equal_on_one_cell_one_pixel(self):
        check_all(np.zeros((1, 2), np.float32), np.ones((1, 1, 1), np.float32), (4, 4), (1, 1))

    def test_equal_where_logits_and_scores_tie(self):
        logits = np.random.default_rng(24).integers(-1, 2, (4, 9, 11)).astype(np.float32)
        check_all(np.zeros((4, 3), np.float32)[:, :2], logits, (36, 44), (36, 44))  # one class: no pair is left out

    @pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9])
    def test_huggingfaces_threshold(self, threshold):
        cls_logits, mask_logits = blobs(np.random.default_rng(25), queries=40, objects=20)
        want = huggingface(cls_logits, mask_logits, ori_shape=(300, 333), threshold=threshold)
        sizes = {"img_shape": (96, 128), "ori_shape": (300, 333)}
        check_equal(run(cls_logits, mask_logits, "huggingface", score_threshold=threshold, **sizes), want)
        assert 0 < len(want.scores) < 40

    def test_huggingface_takes_as_many_pairs_as_there_are_queries(self):
        cls_logits, mask_logits = blobs(np.random.default_rng(26), queries=130, objects=10, cells=(6, 8))
        want = huggingface(cls_logits, mask_logits, ori_shape=(40, 50))
        sizes = {"img_shape": (24, 32), "ori_shape": (40, 50)}
        check_equal(run(cls_logits, mask_logits, "huggingface", pre_top_k=-1, **sizes), want)
        assert len(want.scores) > 100

    @pytest.mark.parametrize("things", [[0, 2], []])
    def test_detectron2_keeps_things_only(self, things):
        cls_logits, mask_logits = blobs(np.random.default_rng(27), queries=30, objects=20)
        sizes = {"img_shape": (96, 100), "ori_shape": (144, 192)}
        want = detectron2(cls_logits, mask_logits, things=things, top_k=60, **sizes)
        check_equal(run(cls_logits, mask_logits, "detectron2", things=things, pre_top_k=60, **sizes), want, "zeros")

    def test_taos_exported_graph_is_the_image_at_the_size_of_the_input(self):
        cls_logits, mask_logits = blobs(np.random.default_rng(28))
        want = tao_graph(cls_logits, mask_logits)
        check_equal(run(cls_logits, mask_logits, "tao", img_shape=(96, 128), ori_shape=(96, 128)), want)


def stretched(mask_logits, ori_shape):
    """Hugging Face in float64: the grid's logits [Q, 384, 384], and those that the image copies [Q, H, W]."""
    grid = bilinear(mask_logits, GRID, GRID)
    rows, columns = (np.arange(size) * GRID // size for size in ori_shape)
    return grid, grid[:, rows[:, None], columns]


@pytest.mark.parametrize("name", SIZES)
def test_huggingface_against_a_float64_reference(name):
    cells, img_shape, ori_shape = SIZES[name]
    cls_logits, mask_logits = blobs(np.random.default_rng(29), cells=cells)
    got = run(cls_logits, mask_logits, "huggingface", img_shape=img_shape, ori_shape=ori_shape)
    grid, full = stretched(mask_logits, ori_shape)
    probabilities = softmax(cls_logits)
    for i, (query, label) in enumerate(zip(got.queries, got.labels, strict=True)):
        wrong = decode(got.rle[i], *ori_shape) != (full[query] > 0)
        assert (np.abs(full[query][wrong]) < NEAR_ZERO).all()
        inside = grid[query] > 0
        mask_score = (1 / (1 + np.exp(-grid[query][inside]))).sum() / (inside.sum() + 1e-6)
        if (np.abs(grid[query]) > NEAR_ZERO).all():
            assert got.scores[i] == pytest.approx(probabilities[query, label] * mask_score, abs=1e-5)
    assert len(got.scores) == sum(full[query].max() > 0 for query, _ in best_pairs(probabilities[:, :-1], 12))


def best_pairs(scores, count):
    return sorted(np.ndindex(scores.shape), key=lambda pair: -scores[pair])[:count]


def test_nearest_copies_the_input_below():
    for size_in, size_out in [(384, 1), (384, 383), (384, 384), (384, 1333), (384, 65_535), (1, 7), (7, 1)]:
        expected = np.arange(size_out) * size_in // size_out
        got = nearest_source(size_in, size_out)
        # the quotient is a whole number there, and float32 may round it down
        assert (np.arange(size_out)[got != expected] * size_in % size_out == 0).all()
        assert (np.abs(got - expected) <= 1).all()


@pytest.mark.torch
def test_nearest_rounds_as_torch():
    import torch

    values = torch.arange(float(GRID))[None, None]
    for size in (*range(1, 3000, 7), 8191, 40_000, 65_535):
        want = torch.nn.functional.interpolate(values, size=size, mode="nearest")[0, 0].numpy()
        np.testing.assert_array_equal(nearest_source(GRID, size), want)


def scene(seed=30, **changes):
    cls_logits, mask_logits = blobs(np.random.default_rng(seed), queries=30, objects=20)
    return {"cls_logits": cls_logits, "mask_logits": mask_logits, **changes}


SIZE = {"img_shape": (96, 100), "ori_shape": (144, 192)}


def test_the_profiles_differ_where_the_readme_says():
    # empty masks stay but for Hugging Face, where no-object is is TAO's own, boxes are not detectron2's
    found = {name: run(**scene(), semantics=name, score_threshold=0.0, **SIZE) for name in PROFILES}
    assert found["mmdet"].rle == found["detectron2"].rle
    assert not found["detectron2"].boxes.any()
    assert found["mmdet"].boxes.any()
    assert found["huggingface"].boxes.any()
    assert found["tao"].labels.tolist() != found["mmdet"].labels.tolist()
    assert set(found["huggingface"].rle).isdisjoint(found["mmdet"].rle)  # the padding is stretched with the image
    assert len(found["huggingface"].scores) <= 30


def test_only_huggingface_drops_empty_masks():
    cls_logits, mask_logits = np.zeros((2, 3), np.float32), np.full((2, 4, 4), -1, np.float32)
    kept = {
        name: len(run(cls_logits, mask_logits, name, img_shape=(16, 16), ori_shape=(20, 30)).scores)
        for name in PROFILES
    }
    assert kept == {"mmdet": 4, "detectron2": 4, "tao": 4, "huggingface": 0}


def test_a_mask_that_falls_between_the_copied_pixels_is_dropped_whatever_its_score():
    mask_logits = np.full((1, GRID, GRID), -9, np.float32)
    mask_logits[0, 100, 101] = 9  # a pixel of the grid that an image of 2 x 2 does not copy
    got = run(np.array([[9, 0]], np.float32), mask_logits, "huggingface", img_shape=(1536, 1536), ori_shape=(2, 2))
    assert len(got.scores) == 0
    got = run(np.array([[9, 0]], np.float32), mask_logits, "huggingface", img_shape=(1536, 1536), ori_shape=(384, 384))
    assert got.areas.tolist() == [1]


@pytest.mark.parametrize(("name", "kept"), [("mmdet", 0), ("detectron2", 0), ("huggingface", 1), ("tao", 1)])
def test_who_keeps_stuff(name, kept):
    got = run(**scene(), semantics=name, things=[], **SIZE)
    assert (len(got.scores) > 0) == kept


@pytest.mark.parametrize("name", PROFILES)
def test_masks_and_areas_are_there_without_a_say_of_the_profile(name):
    got = run(**scene(), semantics=name, score_threshold=0.1, **SIZE)
    assert len(got.scores)
    assert got.areas.tolist() == [decode(rle, 144, 192).sum() for rle in got.rle]
    bare = run(**scene(), semantics=name, score_threshold=0.1, export_postprocess_mask=False, **SIZE)
    assert set(bare.rle) == {b""}
    assert bare.scores.tolist() == got.scores.tolist()


@pytest.mark.parametrize("name", PROFILES)
def test_the_mmdeploy_keys_act_on_top(name):
    everything = run(**scene(), semantics=name, pre_top_k=20, **SIZE)
    some = run(**scene(), semantics=name, pre_top_k=20, classes="0,2", keep_top_k=4, iou_threshold=0.5, **SIZE)
    rows = [
        (label, rle, score)
        for label, rle, score in zip(everything.labels, everything.rle, everything.scores, strict=True)
        if label in (0, 2)
    ]
    kept = []
    for label, rle, score in rows:
        rivals = [coco.iou([{"size": [144, 192], "counts": rle}], [{"size": [144, 192], "counts": r}], [0])[0, 0]
                  for other, r, _ in kept if other == label]  # fmt: skip
        if all(iou <= 0.5 for iou in rivals):
            kept.append((label, rle, score))
    assert list(zip(some.labels, some.rle, some.scores, strict=True)) == kept[:4]


def test_an_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="'semantics' must be one of: mmdet, detectron2, huggingface, tao"):
        Settings(semantics="yolo")
