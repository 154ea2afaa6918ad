"""Masks by every kernel: the same bit for bit, and those of a float64 reference."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_of
from reference import box, full_size_logits

from m2f.errors import InputError
from m2f.geometry import ImageGeometry
from m2f.kernels import BEST, KERNELS
from m2f.limits import WorkLimits
from m2f.masks import sample_masks
from m2f.rle import decode

NEAR_ZERO = 2e-3  # float32 may round a logit this close to 0 to its other side

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def sample(logits, queries, valid, original, kernel=BEST, *, stride=4, **limits):
    """The masks of some queries of logits [Q, h, w]."""
    geometry = ImageGeometry.of(logits.shape[1:], img_shape=valid, ori_shape=original, mask_stride=stride)
    operator = kernel.operator(geometry)
    return sample_masks(logits, np.asarray(queries, int), operator, kernel=kernel, limits=WorkLimits(**limits))


def with_little_room(kernel):
    """The kernel with room for few edges at first, so that it runs out of it."""
    return kernel if kernel.name == "numpy" else replace(kernel, usual_edges=40)


@every_kernel
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cells=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    data=st.data(),
)
def test_invariants(kernel, seed, cells, data):
    """Any size: runs ascend and never touch, box, area and RLE describe the same mask."""
    rng = np.random.default_rng(seed)
    valid = tuple(data.draw(st.integers(1, 4 * n), label="valid") for n in cells)
    original = tuple(data.draw(st.integers(1, 90), label="original") for _ in cells)
    logits = rng.normal(data.draw(st.floats(-2, 2), label="mean"), 2, (1, *cells)).astype(np.float32)
    masks = sample(logits, [0], valid, original, kernel)
    edges = masks.edges(0).astype(np.int64)
    assert (edges[1:] > edges[:-1]).all()
    assert len(edges) % 2 == 0
    dense = decode(masks.rle(0), *original)
    assert masks.areas[0] == dense.sum()
    assert 0 <= masks.scores[0] <= 1
    assert masks.boxes[0].tolist() == box(dense)
    want = full_size_logits(logits, valid, original)[0]
    assert (np.abs(want[dense != (want > 0)]) < NEAR_ZERO).all()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cells=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    stride=st.sampled_from([1, 2, 4]),
    data=st.data(),
)
def test_every_kernel_makes_the_same_masks(seed, cells, stride, data):
    """Bit for bit, whatever the logits; the sums agree to the rounding of their order."""
    rng = np.random.default_rng(seed)
    valid = tuple(data.draw(st.integers(1, stride * n), label="valid") for n in cells)
    original = tuple(data.draw(st.integers(1, 200), label="original") for _ in cells)
    logits = rng.normal(rng.uniform(-2, 2), rng.choice([1e-3, 2, 1e4]), (3, *cells)).astype(np.float32)
    if data.draw(st.booleans(), label="ties"):
        logits = logits.round() * np.float32(data.draw(st.sampled_from([1, 0.3]), label="step"))
    logits[0, rng.random(cells) < 0.02] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 1.0]), label="bad")
    with np.errstate(invalid="ignore"):
        *native, reference = (sample(logits, [2, 0, 1], valid, original, kernel, stride=stride) for kernel in KERNELS)
    for masks in native:
        for i in range(3):
            np.testing.assert_array_equal(masks.edges(i), reference.edges(i))
            assert masks.rle(i) == reference.rle(i)
            assert [masks.iou(i, j) for j in range(3)] == [reference.iou(i, j) for j in range(3)]
        np.testing.assert_array_equal(masks.areas, reference.areas)
        np.testing.assert_array_equal(masks.boxes, reference.boxes)
        np.testing.assert_allclose(masks.scores, reference.scores, rtol=3e-6)


@every_kernel
def test_threads_change_nothing(kernel):
    logits = np.random.default_rng(13).normal(0.3, 1, (7, 12, 9)).astype(np.float32)
    alone, shared = (sample(logits, range(7), (48, 30), (55, 61), replace(kernel, threads=n)) for n in (1, 3))
    assert [alone.rle(i) for i in range(7)] == [shared.rle(i) for i in range(7)]
    assert alone.scores.tolist() == shared.scores.tolist()


@every_kernel
def test_more_edges_than_expected_are_kept(kernel):
    logits = np.random.default_rng(14).normal(size=(4, 40, 40)).astype(np.float32)
    masks = sample(logits, range(4), (160, 160), (120, 130), with_little_room(kernel))
    for i in range(4):
        want = full_size_logits(logits, (160, 160), (120, 130))[i]
        wrong = decode(masks.rle(i), 120, 130) != (want > 0)
        assert (np.abs(want[wrong]) < NEAR_ZERO).all()


@every_kernel
@pytest.mark.parametrize("threads", [1, 3])
def test_masks_of_more_edges_than_allowed_are_refused(kernel, threads):
    logits = np.random.default_rng(14).normal(size=(4, 40, 40)).astype(np.float32)
    arguments = logits, range(4), (160, 160), (120, 130), replace(with_little_room(kernel), threads=threads)
    found = sample(*arguments).num_edges.sum()
    assert sample(*arguments, edges=found).num_edges.sum() == found
    for allowed in (found - 1, found // 2, 1):
        message = rf"have at least \d+ edges; allowed are {allowed}: lower 'pre_top_k', or raise 'score_threshold'"
        with pytest.raises(InputError, match=message) as error:
            sample(*arguments, edges=allowed)
        assert error.value.kind == "output_too_large"


@every_kernel
@pytest.mark.parametrize("threads", [1, 2])
def test_pixels_that_rounding_decides_are_limited(kernel, threads):
    """One large logit puts all others in doubt."""
    logits = np.ones((2, 10, 12), np.float32)
    logits[:, 0, 0] = 1e30
    arguments = logits, range(2), (40, 48), (90, 80), replace(kernel, threads=threads)
    assert sample(*arguments, doubts=2 * 90 * 80).areas.tolist() == [90 * 80] * 2
    for allowed in (90 * 80, 100):
        with pytest.raises(InputError, match=f"pixels whose logit .* of 0; allowed are {allowed}: lower") as error:
            sample(*arguments, doubts=allowed)
        assert error.value.kind == "output_too_large"


def test_room_for_edges_is_made_as_far_as_they_are_allowed():
    """Stripes of 1000 queries: a thousand times what the first few may have."""
    stripes = np.tile(np.float32([[-1], [1]]), (1000, 250, 1))

    def refused():
        with pytest.raises(InputError, match="edges; allowed are 300000"):
            sample(stripes, range(1000), (500, 1), (500, 500), stride=1, edges=300_000)

    assert peak_of(refused)[1] < 5 << 20


@every_kernel
def test_no_queries_no_masks(kernel):
    masks = sample(np.ones((3, 8, 8), np.float32), [], (32, 32), (9, 9), kernel)
    assert len(masks) == 0


@pytest.mark.parametrize(
    ("logits", "queries", "message"),
    [
        (np.zeros((3, 8, 9), np.float32), [0], r"mask logits are \(8, 9\)"),
        (np.zeros((3, 8, 8), np.float32), [3], "queries must lie within 0 and 2"),
        (np.zeros((3, 8, 8), np.float32), [-1], "queries must lie within 0 and 2"),
    ],
)
def test_what_does_not_fit_the_operator_is_refused(logits, queries, message):
    operator = BEST.operator(ImageGeometry.of((8, 8), img_shape=(32, 32), ori_shape=(9, 9)))
    with pytest.raises(InputError, match=message):
        sample_masks(logits, np.array(queries), operator, kernel=BEST)


@every_kernel
def test_intersection_and_iou(kernel):
    rng = np.random.default_rng(12)
    logits = rng.normal(0.3, 1, (6, 8, 8)).astype(np.float32)
    logits[5] = -1  # empty
    masks = sample(logits, range(6), (32, 30), (40, 35), kernel)
    dense = [decode(masks.rle(i), 40, 35).astype(bool) for i in range(6)]
    for i, mask in enumerate(dense):
        for j, other in enumerate(dense):
            shared, union = (mask & other).sum(), (mask | other).sum()
            assert masks.intersection(i, j) == shared
            assert masks.iou(i, j) == pytest.approx(shared / union if union else 0)
