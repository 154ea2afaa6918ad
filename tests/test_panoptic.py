import json

import mmdet_head
import numpy as np
import pytest
import reference_maps
from logits import SIZES, blobs
from memory import peak_of

from m2f.kernels import BEST, NUMPY
from m2f.logits import ImageLogits
from m2f.model_facts import ModelFacts
from m2f.panoptic import panoptic
from m2f.settings import Settings

WAYS = (BEST, NUMPY)


def scenes(count, seed=0):
    """Random scenes of every kind of size and random ones, with things, stuff or both, crowded and empty."""
    rng = np.random.default_rng(seed)
    names = list(SIZES)
    for i in range(count):
        if i % 2:
            cells, img_shape, ori_shape = SIZES[names[i // 2 % len(names)]]
        else:
            cells = tuple(rng.integers(1, 24, 2).tolist())
            img_shape = tuple(int(rng.integers(1, 4 * n + 1)) for n in cells)
            ori_shape = tuple(rng.integers(1, 120, 2).tolist())
        queries = int(rng.integers(1, 15))
        cls_logits, mask_logits = blobs(
            rng, queries=queries, classes=4, cells=cells, objects=int(rng.integers(0, queries + 1)),
            noise=rng.choice([0.0, 0.5, 5.0]),
        )  # fmt: skip
        image = ImageLogits(cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape)
        yield image, img_shape, ori_shape, ModelFacts(thing_classes=frozenset(range(int(rng.integers(0, 5)))))


def difference(ours, theirs, void):
    """The share of pixels that differ, once each of our segments stands for the one of theirs that it covers most."""
    pairs, counts = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1, return_counts=True)
    partner = {0: void}
    for (mine, other), _ in sorted(zip(pairs.T.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]):
        if mine not in partner and other not in partner.values():
            partner[mine] = other
    same = sum(c for (m, o), c in zip(pairs.T.tolist(), counts.tolist(), strict=True) if partner.get(m) == o)
    return 1 - same / ours.size


def check_segments(got, class_names=()):
    """What the segments say is what the map holds."""
    assert got.ids.dtype == np.int32
    assert set(np.unique(got.ids)) - {0} == {segment["id"] for segment in got.segments}
    assert [segment["id"] for segment in got.segments] == list(range(1, len(got.segments) + 1))
    for segment in json.loads(json.dumps(got.segments)):
        rows, columns = np.nonzero(got.ids == segment["id"])
        x, y, width, height = segment["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert segment["area"] == len(rows)
        assert segment["iscrowd"] == 0
        assert segment.get("name") == (class_names[segment["category_id"]] if class_names else None)


def test_equal_to_the_reference():
    """Segments one by one; pixels but for those where float32 rounds a tie or a border the other way."""
    different, found = [], 0
    for image, img_shape, ori_shape, facts in scenes(100):
        masks = reference_maps.mask_probabilities(image.mask_logits, img_shape, ori_shape)
        ids, segments = reference_maps.panoptic(image.cls_logits, masks, things=facts.thing_classes)
        for kernel in WAYS:
            got = panoptic(image, Settings(), facts, kernel=kernel)
            check_segments(got)
            kept = [{key: segment[key] for key in ("id", "isthing", "category_id")} for segment in got.segments]
            assert kept == segments
            different.append((got.ids != ids).mean())
        found += len(segments)
    assert np.mean(different) < 1e-6
    assert found > 100


@pytest.fixture(scope="module")
def mmdet_map():
    """A function: logits -> mmdetection's panoptic map and its number for void."""
    predict = mmdet_head.load()

    def run(*image, **test_cfg):
        return predict(*image, **test_cfg)["pan_results"].sem_seg[0].numpy(), image[0].shape[1] - 1

    return run


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("filter_low_score", [False, True])
@pytest.mark.parametrize(("score", "overlap"), [(0.8, 0.8), (0.3, 0.5), (0.0, 0.0), (0.9, 1.0)])
def test_equal_to_mmdetections_own(mmdet_map, filter_low_score, score, overlap):
    from mmdet.evaluation.functional import INSTANCE_OFFSET

    settings = Settings(
        panoptic_score_threshold=score, panoptic_overlap_threshold=overlap, panoptic_filter_low_score=filter_low_score
    )
    test_cfg = {"object_mask_thr": score, "iou_thr": overlap, "filter_low_score": filter_low_score}
    different = []
    for image, img_shape, ori_shape, facts in scenes(12, seed=int(10 * score)):
        want, void = mmdet_map(
            image.cls_logits, image.mask_logits, img_shape, ori_shape, num_things=len(facts.thing_classes), **test_cfg
        )
        for kernel in WAYS:
            got = panoptic(image, settings, facts, kernel=kernel)
            assert len(got.segments) == len(set(np.unique(want)) - {void})
            different.append(difference(got.ids, want, void))
            classes = np.array([void, *(segment["category_id"] for segment in got.segments)])[got.ids]
            assert (classes != want % INSTANCE_OFFSET).mean() <= different[-1]
    assert np.mean(different) < 1e-6


@pytest.fixture(params=WAYS, ids=str)
def run(request):
    """A function: logits of 3 x 3 cells -> their segmentation, whose segments are checked."""

    def run(cls_logits, mask_logits, thing_classes=None, class_names=(), **settings):
        logits = np.asarray(cls_logits, np.float32), np.asarray(mask_logits, np.float32)
        image = ImageLogits(*logits, img_shape=(12, 12), ori_shape=(12, 12))
        facts = ModelFacts(class_names=class_names, thing_classes=thing_classes)
        got = panoptic(image, Settings(**settings), facts, kernel=request.param)
        check_segments(got, class_names)
        return got

    return run


def flat(*logits):
    """Masks of one logit all over."""
    return np.full((len(logits), 3, 3), np.array(logits)[:, None, None], np.float32)


SURE = [9.0, 0.0, 0.0]  # class 0 of 2
OTHER = [0.0, 9.0, 0.0]


def test_the_first_of_equals_has_the_pixel(run):
    assert [s["category_id"] for s in run([SURE, OTHER], flat(2, 2)).segments] == [0]
    assert [s["category_id"] for s in run([OTHER, SURE], flat(2, 2)).segments] == [1]


def test_a_pixel_that_the_winner_does_not_hold_is_void_if_low_scores_are_filtered(run):
    masks = flat(-1, -1)
    masks[0, 0, 0] = 5
    assert len(run([SURE], masks[:1]).segments) == 1
    assert (run([SURE], masks[:1]).ids == 0).any()
    assert (run([SURE], masks[:1], panoptic_filter_low_score=False).ids == 1).all()


def test_a_mask_that_others_cover_is_void(run):
    masks = flat(3, -9)
    masks[1, :, :2] = 9  # wins most of the first one's mask
    assert [s["category_id"] for s in run([SURE, OTHER], masks).segments] == [1]
    assert [s["category_id"] for s in run([SURE, OTHER], masks, panoptic_overlap_threshold=0.1).segments] == [0, 1]


def test_a_share_of_exactly_the_threshold_is_enough(run):
    assert len(run([SURE], flat(9), panoptic_overlap_threshold=1.0).segments) == 1


def test_stuff_of_a_class_is_one_segment(run):
    masks = flat(-9, -9, -9)
    masks[0, :, 0], masks[1, :, 1], masks[2, :, 2] = 9, 9, 9
    scores = [[8.0, 0.0, 0.0], OTHER, SURE]
    things = run(scores, masks)
    assert [s["isthing"] for s in things.segments] == [1, 1, 1]
    merged = run(scores, masks, thing_classes=frozenset([1]))
    assert [(s["category_id"], s["isthing"]) for s in merged.segments] == [(0, 0), (1, 1)]
    assert merged.segments[0]["area"] == things.segments[0]["area"] + things.segments[2]["area"]
    assert merged.segments[0]["bbox"] == [0, 0, 12, 12]
    assert merged.segments[0]["score"] == things.segments[2]["score"]  # the best one


def test_names(run):
    assert [s["name"] for s in run([OTHER], flat(9), class_names=("sky", "dog")).segments] == ["dog"]


def test_scores_are_the_class_scores_and_must_be_above_the_threshold(run):
    cls_logits = np.log([[0.5, 0.25, 0.25]])
    got = run(cls_logits, flat(9), panoptic_score_threshold=0.4)
    assert got.segments[0]["score"] == pytest.approx(0.5)
    assert run(cls_logits, flat(9), panoptic_score_threshold=np.nextafter(0.5, 1).item()).segments == []


def test_no_object_first(run):
    first = [[0.0, 0.0, 9.0], [9.0, 0.0, 0.0]]
    assert [s["category_id"] for s in run(first, flat(9, 3), background_label_id=0).segments] == [1]


def test_nothing_found_is_void(run):
    got = run([[0.0, 0.0, 9.0]], flat(9))
    assert got.segments == []
    assert not got.ids.any()


@pytest.mark.filterwarnings("error")
def test_logits_that_are_no_numbers_spoil_only_their_own_query(run):
    got = run([SURE, OTHER, [np.inf, 0, 0], [np.nan] * 3], flat(np.nan, 2, 9, 9))
    assert [s["category_id"] for s in got.segments] == [1]
    got = run([SURE, OTHER], flat(np.inf, -np.inf))
    assert [(s["category_id"], s["area"]) for s in got.segments] == [(0, 144)]


@pytest.mark.parametrize("kernel", WAYS, ids=str)
def test_memory_beyond_the_answer_is_bounded(kernel):
    cls_logits, mask_logits = blobs(np.random.default_rng(6), queries=12, cells=(64, 64), objects=12)
    image = ImageLogits(cls_logits, mask_logits, img_shape=(256, 256), ori_shape=(2000, 2000))
    got, peak = peak_of(lambda: panoptic(image, Settings(), kernel=kernel))
    assert len(got.segments) > 1
    assert peak - got.ids.nbytes < 8 << 20
