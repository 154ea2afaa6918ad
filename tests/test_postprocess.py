import numpy as np
import pytest
from logits import SIZES, blobs
from pycocotools import mask as coco
from reference import full_size_logits, instances

from m2f.errors import InputError
from m2f.kernels import BEST, KERNELS
from m2f.limits import WORK_LIMITS, WorkLimits
from m2f.logits import ImageLogits
from m2f.model_facts import ModelFacts
from m2f.numpy_kernel import NumpyKernel
from m2f.postprocess import postprocess, select
from m2f.rle import decode
from m2f.settings import Settings

NEAR_ZERO = 2e-3  # float32 may round a logit this close to 0 to its other side


every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def check_against_reference(cls_logits, mask_logits, img_shape, ori_shape, *, threshold=0.0, kernel=BEST):
    """Same rows (matched by query and label), scores, masks and boxes as the float64 reference."""
    got = postprocess(
        ImageLogits(cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape),
        Settings(score_threshold=threshold),
        kernel=kernel,
    )
    want = instances(cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape, threshold=threshold)
    logits = full_size_logits(mask_logits, img_shape, ori_shape)
    rows = {(row["query"], row["label"]): row for row in want}
    found = {(q, c): i for i, (q, c) in enumerate(zip(got.queries.tolist(), got.labels.tolist(), strict=True))}
    for key in rows.keys() ^ found.keys():  # only a score that rounds to the threshold may go either way
        score = rows[key]["score"] if key in rows else got.scores[found[key]]
        assert score == pytest.approx(threshold, abs=1e-5)
    for key in rows.keys() & found.keys():
        row, i = rows[key], found[key]
        mask = decode(got.rle[i], *ori_shape)
        wrong = mask != row["mask"]
        assert (np.abs(logits[key[0]][wrong]) < NEAR_ZERO).all()
        assert wrong.sum() <= max(1, 1e-4 * mask.size)
        assert got.areas[i] == mask.sum()
        if not wrong.any():
            assert got.scores[i] == pytest.approx(row["score"], abs=1e-5)
            assert got.boxes[i].tolist() == row["box"]
    assert (np.diff(got.scores) <= 0).all()
    return got


@every_kernel
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_float64_reference(name, seed, kernel):
    cells, img_shape, ori_shape = SIZES[name]
    cls_logits, mask_logits = blobs(np.random.default_rng(seed), cells=cells)
    check_against_reference(cls_logits, mask_logits, img_shape, ori_shape, kernel=kernel)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.9, 1.0])
def test_dropping_by_class_score_first_changes_nothing(threshold):
    cls_logits, mask_logits = blobs(np.random.default_rng(5), queries=40, objects=20)
    check_against_reference(cls_logits, mask_logits, (96, 100), (300, 333), threshold=threshold)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_pure_noise(scale):
    rng = np.random.default_rng(6)
    cls_logits = rng.normal(size=(5, 4)).astype(np.float32)
    mask_logits = (rng.normal(size=(5, 9, 11)) * scale).astype(np.float32)
    got = postprocess(ImageLogits(cls_logits, mask_logits, img_shape=(33, 41), ori_shape=(50, 60)), Settings())
    logits = full_size_logits(mask_logits, (33, 41), (50, 60))
    for query, rle in zip(got.queries, got.rle, strict=True):
        wrong = decode(rle, 50, 60) != (logits[query] > 0)
        assert (np.abs(logits[query][wrong]) < NEAR_ZERO * scale).all()


@pytest.mark.parametrize("value", [-5.0, 0.0])
def test_empty_masks_score_zero_and_have_zero_boxes(value):
    cls_logits = np.zeros((2, 3), np.float32)
    got = postprocess(
        ImageLogits(cls_logits, np.full((2, 4, 4), value, np.float32), img_shape=(16, 16), ori_shape=(20, 30)),
        Settings(),
    )
    assert got.scores.tolist() == [0] * 4
    assert got.boxes.tolist() == [[0, 0, 0, 0]] * 4
    assert not decode(got.rle[0], 20, 30).any()


def test_a_logit_of_exactly_zero_is_outside():
    logits = np.random.default_rng(3).integers(-1, 2, (3, 9, 11)).astype(np.float32)
    got = postprocess(
        ImageLogits(np.zeros((3, 2), np.float32), logits, img_shape=(9, 11), ori_shape=(9, 11), mask_stride=1),
        Settings(),
    )
    for query, rle in zip(got.queries, got.rle, strict=True):
        np.testing.assert_array_equal(decode(rle, 9, 11), logits[query] > 0)


def test_full_masks_cover_the_image():
    got = postprocess(
        ImageLogits(
            np.zeros((1, 2), np.float32), np.full((1, 4, 4), 3, np.float32), img_shape=(13, 16), ori_shape=(20, 30)
        ),
        Settings(),
    )
    assert got.boxes.tolist() == [[0, 0, 30, 20]]
    assert got.areas.tolist() == [600]
    assert got.rle == [coco.encode(np.ones((20, 30), np.uint8, order="F"))["counts"]]
    assert got.scores[0] == pytest.approx(0.5 / (1 + np.exp(-3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_logit_spoils_only_its_query(bad):
    cls_logits, mask_logits = blobs(np.random.default_rng(7))
    clean = postprocess(ImageLogits(cls_logits, mask_logits, img_shape=(96, 128), ori_shape=(96, 128)), Settings())
    mask_logits = mask_logits.copy()
    mask_logits[0, 3, 3] = bad
    cls_logits = cls_logits.copy()
    cls_logits[1] = np.nan
    with np.errstate(invalid="ignore"):
        got = postprocess(ImageLogits(cls_logits, mask_logits, img_shape=(96, 128), ori_shape=(96, 128)), Settings())
    assert 1 not in got.queries
    untouched = ~np.isin(clean.queries, [0, 1])
    same = ~np.isin(got.queries, [0, 1])
    assert [r for r, ok in zip(clean.rle, untouched, strict=True) if ok] == [
        r for r, ok in zip(got.rle, same, strict=True) if ok
    ]
    assert not np.isnan(got.scores).any()


def test_background_first_reads_the_other_columns():
    cls_logits, mask_logits = blobs(np.random.default_rng(8))
    sizes = {"img_shape": (96, 128), "ori_shape": (96, 128)}
    last = postprocess(ImageLogits(cls_logits, mask_logits, **sizes), Settings())
    first = postprocess(
        ImageLogits(np.roll(cls_logits, 1, axis=1), mask_logits, **sizes), Settings(background_label_id=0)
    )
    assert last.rle == first.rle
    np.testing.assert_array_equal(last.labels, first.labels)
    np.testing.assert_allclose(last.scores, first.scores, rtol=1e-6)


class CountingKernel(NumpyKernel):
    """Counts the masks that it encodes, each to 10 MB, and the pairs that it compares, which do not overlap."""

    def __init__(self):
        super().__init__()
        self.__dict__.update(encoded=[], compared=[])  # a kernel is frozen

    def encode(self, edges, _num_pixels):
        self.encoded.append(edges)
        return bytes(10_000_000)

    def intersection(self, edges, others):
        self.compared.append({edges.tobytes(), others.tobytes()})
        return 0


def scene_settings(limits=WORK_LIMITS, kernel=BEST, **changes):
    cls_logits, mask_logits = blobs(np.random.default_rng(9), queries=30, objects=25)
    return postprocess(
        ImageLogits(cls_logits, mask_logits, img_shape=(96, 128), ori_shape=(144, 192)),
        Settings(**changes),
        ModelFacts(class_names=("a", "b", "c", "d")),
        kernel=kernel,
        limits=limits,
    )


def test_pre_top_k_limits_the_candidates():
    everything = scene_settings(pre_top_k=-1)
    assert len(everything.scores) == 30 * 4
    assert len(scene_settings(pre_top_k=100_000).scores) == 30 * 4
    assert len(scene_settings(pre_top_k=7).scores) == 7


def test_keep_top_k_keeps_the_best():
    everything, best = scene_settings(), scene_settings(keep_top_k=5)
    assert best.rle == everything.rle[:5]
    assert best.scores.tolist() == everything.scores[:5].tolist()


def test_cap_per_class():
    everything, capped = scene_settings(), scene_settings(max_output_boxes_per_class=2)
    for label in range(4):
        expected = everything.scores[everything.labels == label][:2]
        assert capped.scores[capped.labels == label].tolist() == expected.tolist()


@pytest.mark.parametrize("classes", ["0,2", "a,c", " c , 0 "])
def test_classes_by_index_or_name_are_a_filter(classes):
    everything, some = scene_settings(), scene_settings(classes=classes)
    wanted = np.isin(everything.labels, [0, 2])
    assert some.queries.tolist() == everything.queries[wanted].tolist()
    assert some.labels.tolist() == everything.labels[wanted].tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_nms_equals_the_obvious_loop(threshold):
    everything, kept = scene_settings(), scene_settings(iou_threshold=threshold)
    masks = [decode(rle, 144, 192).astype(bool) for rle in everything.rle]
    expected = []
    for i, mask in enumerate(masks):
        rivals = [masks[j] for j in expected if everything.labels[j] == everything.labels[i]]
        if all((mask & rival).sum() <= threshold * (mask | rival).sum() for rival in rivals):
            expected.append(i)
    assert kept.rle == [everything.rle[i] for i in expected]
    assert len(expected) < len(masks)


def test_without_masks_the_rest_is_the_same():
    everything, bare = scene_settings(), scene_settings(export_postprocess_mask=False)
    assert set(bare.rle) == {b""}
    np.testing.assert_array_equal(bare.boxes, everything.boxes)
    np.testing.assert_array_equal(bare.areas, everything.areas)


def test_rle_is_not_made_beyond_what_an_answer_may_have():
    kernel = CountingKernel()
    with pytest.raises(
        InputError, match=r"'rle' would take 80000000 bytes; allowed are 67108864: .*keep_top_k"
    ) as error:
        scene_settings(kernel=kernel, pre_top_k=-1)  # each of 30 masks is of four classes
    assert error.value.kind == "output_too_large"
    assert len(kernel.encoded) == 2
    assert set(scene_settings(kernel=kernel, export_postprocess_mask=False).rle) == {b""}


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_other_strides(stride):
    cls_logits, mask_logits = blobs(np.random.default_rng(10), cells=(16, 20))
    img_shape, ori_shape = (15 * stride, 20 * stride), (40, 50)
    got = postprocess(
        ImageLogits(cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape, mask_stride=stride), Settings()
    )
    logits = full_size_logits(mask_logits, img_shape, ori_shape, stride)
    for query, rle in zip(got.queries, got.rle, strict=True):
        wrong = decode(rle, *ori_shape) != (logits[query] > 0)
        assert (np.abs(logits[query][wrong]) < NEAR_ZERO).all()


def test_the_best_candidates_come_first_and_ties_in_their_order():
    rng = np.random.default_rng(15)
    for _ in range(50):
        scores = rng.integers(0, 6, (5, 4)).astype(np.float32) / 5
        scores[rng.random((5, 4)) < 0.1] = np.nan
        limit, threshold = int(rng.integers(1, 25)), float(rng.choice([0, 0.4]))
        flat = sorted((-s, i) for i, s in enumerate(scores.reshape(-1)) if s >= threshold)[:limit]
        found = select(scores, Settings(pre_top_k=limit), np.full(scores.shape[1], threshold, np.float32))
        assert (found.queries * 4 + found.labels).tolist() == [i for _, i in flat]


def test_stuff_classes_have_no_instances_but_take_part_in_the_top_k():
    everything = scene_settings(pre_top_k=20)
    cls_logits, mask_logits = blobs(np.random.default_rng(9), queries=30, objects=25)
    things = postprocess(
        ImageLogits(cls_logits, mask_logits, img_shape=(96, 128), ori_shape=(144, 192)),
        Settings(pre_top_k=20),
        ModelFacts(thing_classes=frozenset({0, 3})),
    )
    expected = np.isin(everything.labels, [0, 3])
    assert 0 < expected.sum() < 20
    assert things.queries.tolist() == everything.queries[expected].tolist()


def test_class_score_thresholds_replace_the_common_one():
    everything = scene_settings()
    own = np.float32([0.1, 0.9, 0.5, 0.0])  # the highest and the lowest are those of classes named
    passes = everything.scores >= own[everything.labels]
    some = scene_settings(score_threshold=0.5, class_score_thresholds="a=0.1, 1=0.9,d=0")
    assert some.queries.tolist() == everything.queries[passes].tolist()
    assert some.labels.tolist() == everything.labels[passes].tolist()
    assert some.rle == [rle for rle, passed in zip(everything.rle, passes, strict=True) if passed]
    assert set(some.labels) > {3}


def test_a_candidate_below_its_own_threshold_gets_no_mask():
    found = select(np.float32([[0.6, 0.3], [0.5, 0.8]]), Settings(), np.float32([0.6, 0.3]))
    assert list(zip(found.queries, found.labels, strict=True)) == [(1, 1), (0, 0), (0, 1)]
    assert not len(select(np.float32([[0.6]]), Settings(), np.float32([np.inf])).queries)  # a class not wanted


def test_class_score_thresholds_make_no_room_among_the_candidates():
    few = scene_settings(pre_top_k=10)
    some = scene_settings(pre_top_k=10, class_score_thresholds="a=1")
    assert some.queries.tolist() == few.queries[few.labels != 0].tolist()
    assert len(some.queries) < len(few.queries)


def test_nms_is_among_instances_of_one_class():
    """Three queries with the same mask, two of them of the same class."""
    cls_logits = np.float32([[9, 0, 0], [8, 0, 0], [0, 7, 0]])
    mask_logits = np.tile(np.float32([[5, -5], [-5, -5]]), (3, 1, 1))
    sizes = {"img_shape": (8, 8), "ori_shape": (16, 16)}
    kept = postprocess(ImageLogits(cls_logits, mask_logits, **sizes), Settings(score_threshold=0.5, iou_threshold=0.9))
    assert kept.queries.tolist() == [0, 2]
    off = postprocess(ImageLogits(cls_logits, mask_logits, **sizes), Settings(score_threshold=0.5, iou_threshold=1.0))
    assert off.queries.tolist() == [0, 1, 2]


def test_two_masks_are_compared_once_whatever_the_classes():
    """All of 12 queries x 30 classes are candidates: 12 masks make 66 pairs."""
    kernel = CountingKernel()
    cls_logits = np.random.default_rng(7).normal(size=(12, 31)).astype(np.float32)
    mask_logits = np.random.default_rng(8).normal(size=(12, 8, 8)).astype(np.float32)
    settings = Settings(iou_threshold=0.5, pre_top_k=-1, export_postprocess_mask=False)
    image = ImageLogits(cls_logits, mask_logits, img_shape=(32, 32), ori_shape=(32, 32))
    assert len(postprocess(image, settings, kernel=kernel).scores) == 12 * 30
    assert len(kernel.compared) == len(set(map(frozenset, kernel.compared))) == 66


@pytest.mark.parametrize("changed", [{"iou_threshold": 0.9}, {"max_output_boxes_per_class": 3}])
def test_candidates_that_would_take_long_to_compare_are_refused(changed):
    assert len(scene_settings(WorkLimits(compared_candidates=120), pre_top_k=-1, **changed).scores) > 0
    limits = WorkLimits(compared_candidates=119)
    message = (
        "an image has 120 candidates for 'iou_threshold' or .*; allowed are 119: lower 'pre_top_k', or raise 'score"
    )
    with pytest.raises(InputError, match=message) as error:
        scene_settings(limits, pre_top_k=-1, **changed)
    assert error.value.kind == "output_too_large"
    assert len(scene_settings(limits, pre_top_k=-1).scores) == 120


@pytest.mark.parametrize("same_class", [False, True])
def test_masks_that_would_take_long_to_compare_are_refused(same_class):
    """Three masks of 2 edges, of one class or of a class each."""
    cls_logits = np.full((3, 4), -20, np.float32)
    cls_logits[range(3), [0] * 3 if same_class else range(3)] = 0
    image = ImageLogits(cls_logits, np.ones((3, 2, 2), np.float32), img_shape=(8, 8), ori_shape=(8, 8))
    settings, edges = Settings(score_threshold=0.5, iou_threshold=0.9), 18 if same_class else 6
    found = postprocess(image, settings, limits=WorkLimits(compared_edges=edges))
    assert len(found.scores) == (1 if same_class else 3)
    with pytest.raises(InputError, match=r"'iou_threshold' would compare masks at .* edges; .*: lower 'pre_top_k'"):
        postprocess(image, settings, limits=WorkLimits(compared_edges=edges - 1))


def test_more_candidates_than_an_image_may_have_are_refused():
    with pytest.raises(InputError, match="an image has 120 candidates; allowed are 119: lower 'pre_top_k', or raise"):
        scene_settings(WorkLimits(candidates=119), pre_top_k=-1)
    assert len(scene_settings(WorkLimits(candidates=119), pre_top_k=119).scores) == 119


def test_the_caps_count_what_nms_left():
    kept = scene_settings(iou_threshold=0.3)
    capped = scene_settings(iou_threshold=0.3, max_output_boxes_per_class=3, keep_top_k=7)
    position = dict.fromkeys(range(4), 0)
    expected = []
    for i, label in enumerate(kept.labels.tolist()):
        position[label] += 1
        if position[label] <= 3:
            expected.append(i)
    assert capped.rle == [kept.rle[i] for i in expected[:7]]
    assert len(expected) > 7
