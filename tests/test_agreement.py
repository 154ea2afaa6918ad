"""Instances of two answers, paired one by one."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from m2f.agreement import CONFIDENT, SAME, compare, match
from m2f.errors import InputError
from m2f.rle import decode_edges, encode_mask


class Answer(NamedTuple):
    scores: list
    labels: list
    rle: list
    size_hw: tuple = (60, 80)


def disc(y, x, score, label=0, radius=10):
    rows, columns = np.ogrid[:60, :80]
    return score, label, encode_mask((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


def answer(*instances):
    return Answer(*map(list, zip(*instances, strict=True))) if instances else Answer([], [], [])


def pairs(first, second):
    return [(pair.first, pair.second) for pair in match(first, second)]


def test_pairs_are_of_one_class_and_each_is_used_once():
    first = answer(disc(20, 20, 0.9), disc(20, 60, 0.8), disc(40, 40, 0.7, label=2))
    second = answer(disc(20, 60, 0.8), disc(21, 20, 0.85), disc(20, 20, 0.5), disc(40, 40, 0.7))
    assert sorted(pairs(first, second)) == [(0, 2), (1, 0)]
    assert all(pair.iou == 1 for pair in match(first, second))
    assert match(first, second)[0].score == pytest.approx(0.4)
    assert match(answer(), second) == match(first, answer()) == match(answer(), answer()) == []


def test_equal_instances_have_a_partner_each():
    twice = answer(disc(20, 20, 0.9), disc(20, 20, 0.9))
    assert sorted(pairs(twice, twice)) == [(0, 0), (1, 1)]


def test_a_confident_pair_comes_before_a_better_overlap_with_a_candidate():
    assert pairs(answer(disc(20, 20, 0.9)), answer(disc(20, 20, 0.1), disc(21, 20, 0.9))) == [(0, 1)]


def test_candidates_need_no_partner_and_get_none_among_themselves():
    candidate = answer(disc(20, 20, CONFIDENT - 0.01))
    assert pairs(candidate, candidate) == []
    assert pairs(candidate, answer(disc(20, 20, CONFIDENT))) == [(0, 0)]


@pytest.mark.parametrize(("pixels", "same"), [((1, 2), True), ((1, 3), False), ((0, 0), False), ((4800, 4800), True)])
def test_the_least_iou(pixels, same):
    """The first n pixels of a picture, of two numbers: their IoU is the ratio, and empty masks are nothing."""
    number = np.arange(60 * 80).reshape(80, 60).T
    first, second = (answer((0.9, 0, encode_mask(number < count))) for count in pixels)
    assert bool(match(first, second)) is same
    assert bool(match(second, first)) is same


def test_masks_of_other_sizes_are_not_the_same():
    one = answer(disc(20, 20, 0.9))
    full = Answer([0.9], [0], [encode_mask(np.ones((1, 1)))], (1, 1))
    assert match(one, full) == []
    assert [pair.iou for pair in match(full, full)] == [1]


def test_an_invalid_mask_is_refused():
    with pytest.raises(InputError, match="not the COCO compressed RLE of a mask of 60 x 80 pixels"):
        match(answer(disc(20, 20, 0.9)), answer((0.9, 0, b"nonsense")))


def test_compare():
    first = {
        1: answer(disc(20, 20, 0.9), disc(20, 60, 0.31), disc(40, 40, 0.6), disc(45, 10, 0.1)),
        2: answer(disc(20, 20, 0.5)),
        3: answer(),
    }
    second = {
        1: answer(disc(20, 20, 0.8), disc(20, 60, 0.29)),
        2: answer(disc(20, 20, 0.5), disc(40, 60, 0.4)),
        4: answer(disc(9, 9, 1)),
    }
    found = compare(first, second)
    assert (found.instances, found.matched, found.extra) == (4, 3, 1)  # the one at 0.1 needs no partner
    assert found.iou == 1
    assert found.score_max == pytest.approx(0.1)
    assert found.score_mean == pytest.approx((0.1 + 0.02 + 0) / 3)
    assert found.differ == (1, 2)
    assert found.share == pytest.approx(3 / 5 * (1 - 0.04))
    assert found.to_dict() | {"differ": [1, 2]} == found.to_dict() | {"differ": list(found.differ)}
    same = compare(first, first)
    assert (same.instances, same.matched, same.extra, same.score_max, same.differ, same.share) == (4, 4, 0, 0, (), 1)


def test_nothing_on_either_side_agrees():
    nothing = compare({1: answer()}, {1: answer()})
    assert (nothing.iou, nothing.score_mean, nothing.share) == (None, None, 1)
    assert compare({1: answer(disc(20, 20, 0.9))}, {1: answer()}).share == 0


SCENES = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(0, 6), st.integers(0, 6)
)


def random_answer(rng, height, width, count):
    """Boxes, with holes now and then: many overlap, some are empty, some fill the image."""
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        top, left = rng.integers(0, (height, width))
        mask[top : top + rng.integers(0, height + 1), left : left + rng.integers(0, width + 1)] = True
        mask[rng.random(mask.shape) < rng.choice([0, 0, 0.2])] = False
    scores = rng.choice([0.1, 0.3, 0.5, 0.9], count)
    return Answer(scores, rng.integers(0, 2, count), [encode_mask(mask) for mask in masks], (height, width))


@settings(max_examples=200, deadline=None)
@given(SCENES)
def test_every_pair_is_the_best_that_is_left(scene):
    """The rule, slowly, on IoU of pycocotools."""
    seed, height, width, count, other_count = scene
    rng = np.random.default_rng(seed)
    first = random_answer(rng, height, width, count)
    second = random_answer(rng, height, width, other_count)
    iou = np.zeros((count, other_count))
    if count and other_count:
        rows = ([{"size": [height, width], "counts": counts} for counts in found.rle] for found in (first, second))
        iou = np.asarray(coco_mask.iou(*rows, [0] * other_count))
    allowed = [
        ((int(first.scores[i] >= CONFIDENT) + int(second.scores[j] >= CONFIDENT), iou[i, j]), i, j)
        for i in range(count)
        for j in range(other_count)
        if first.labels[i] == second.labels[j] and iou[i, j] >= SAME
        and max(first.scores[i], second.scores[j]) >= CONFIDENT
    ]  # fmt: skip
    found = match(first, second)
    for pair in found:
        best = max(rank for rank, _, _ in allowed)
        assert ((best[0], pair.iou), pair.first, pair.second) in allowed
        assert pair.iou == best[1]
        allowed = [entry for entry in allowed if entry[1] != pair.first and entry[2] != pair.second]
    assert not allowed


def test_edges_are_those_of_the_mask():
    mask = np.array([[0, 1, 1], [1, 1, 0]])
    assert decode_edges(encode_mask(mask), 2, 3).tolist() == [1, 5]
    assert decode_edges(encode_mask(np.zeros((2, 3))), 2, 3).tolist() == []
    assert decode_edges(encode_mask(np.ones((2, 3))), 2, 3).tolist() == [0, 6]
    assert decode_edges(b"0300", 2, 3).tolist() == [0, 3, 3, 6]  # an empty count in between
    for counts, height, width in ((b"", 2, 3), (b"6", 1, 1), (b"6", -2, -3)):
        with pytest.raises(InputError, match="not the COCO compressed RLE"):
            decode_edges(counts, height, width)
