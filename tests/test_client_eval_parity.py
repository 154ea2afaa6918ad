"""Instances of two servers, paired one by one."""

import pytest
from coco_data import row

from m2f_client.evaluation.parity import compare, match


def test_pairs_are_of_one_class_and_each_is_used_once():
    first = [row(20, 20, 0.9), row(20, 60, 0.8), row(40, 40, 0.7, category=2)]
    second = [row(20, 60, 0.8), row(21, 20, 0.85), row(20, 20, 0.5), row(40, 40, 0.7)]
    pairs = match(first, second)
    assert sorted((i, j) for i, j, _ in pairs) == [(0, 2), (1, 0)]
    assert all(iou == 1 for _, _, iou in pairs)
    assert match([], second) == match(first, []) == []


def test_a_confident_pair_comes_before_a_better_overlap_with_a_candidate():
    first, second = [row(20, 20, 0.9)], [row(20, 20, 0.1), row(21, 20, 0.9)]
    assert [(i, j) for i, j, _ in match(first, second)] == [(0, 1)]


def test_compare():
    first = {1: [row(20, 20, 0.9), row(20, 60, 0.31), row(40, 40, 0.6), row(45, 10, 0.1)], 2: [row(20, 20, 0.5)], 3: []}
    second = {1: [row(20, 20, 0.8), row(20, 60, 0.29)], 2: [row(20, 20, 0.5), row(40, 60, 0.4)], 4: [row(9, 9, 1)]}
    parity = compare(first, second)
    assert (parity.instances, parity.matched, parity.extra) == (4, 3, 1)  # the one at 0.1 needs no partner
    assert parity.iou == 1
    assert parity.score_max == pytest.approx(0.1)
    assert parity.score_mean == pytest.approx((0.1 + 0.02 + 0) / 3)
    assert parity.differ == (1, 2)
    same = compare(first, first)
    assert (same.instances, same.matched, same.extra, same.score_max, same.differ) == (4, 4, 0, 0, ())
    assert compare({1: []}, {1: []}).iou is None
