import re

import pytest

from m2f.contract import InputError
from m2f.settings import KEYS, Settings


def test_the_defaults_are_mmdetections():
    assert Settings() == Settings(
        score_threshold=0.0, pre_top_k=100, iou_threshold=1.0, max_output_boxes_per_class=-1, keep_top_k=-1,
        background_label_id=-1, export_postprocess_mask=True, classes="", semantics="mmdet",
    )  # fmt: skip


def test_repository_parameters_are_strings_and_others_are_left_alone():
    parameters = {"score_threshold": "0.25", "keep_top_k": "10", "export_postprocess_mask": "false", "mask_stride": "4"}
    expected = Settings(score_threshold=0.25, keep_top_k=10, export_postprocess_mask=False)
    assert Settings.from_repository(parameters) == expected


def test_a_request_overrides_only_what_it_names():
    base = Settings(score_threshold=0.5, keep_top_k=3)
    assert base.override({"keep_top_k": 7}) == Settings(score_threshold=0.5, keep_top_k=7)
    assert base.override({}) is base


def test_an_unknown_key_lists_the_allowed_ones():
    with pytest.raises(InputError, match=r"unknown request parameter 'score_thresold'; allowed: .*score_threshold"):
        Settings().override({"score_thresold": 0.5})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("score_threshold", -0.1, "a number from 0 to 1"),
        ("score_threshold", 1.01, "a number from 0 to 1"),
        ("score_threshold", float("nan"), "a number from 0 to 1"),
        ("score_threshold", "0.5", "a number from 0 to 1"),
        ("score_threshold", True, "a number from 0 to 1"),
        ("iou_threshold", 2, "a number from 0 to 1"),
        ("pre_top_k", 0, "a whole number >= 1, or -1 for no limit"),
        ("pre_top_k", 1.5, "a whole number >= 1, or -1 for no limit"),
        ("pre_top_k", -2, "a whole number >= 1, or -1 for no limit"),
        ("keep_top_k", True, "a whole number >= 1, or -1 for no limit"),
        ("max_output_boxes_per_class", "many", "a whole number >= 1, or -1 for no limit"),
        ("background_label_id", 80, "-1 (no-object comes last) or 0 (first)"),
        ("export_postprocess_mask", 1, "true or false"),
        ("classes", 3, "a string of class indices or names, comma-separated"),
        ("semantics", "detectron3", "one of: mmdet"),
    ],
)
def test_a_wrong_value_names_the_key_the_value_and_what_is_allowed(key, value, allowed):
    with pytest.raises(InputError, match=re.escape(f"parameter '{key}' must be {allowed}; got {value!r}")):
        Settings().override({key: value})


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("classes", "semantics")])
def test_a_repository_value_that_is_not_json_is_refused(key):
    with pytest.raises(InputError, match=f"parameter '{key}' must be"):
        Settings.from_repository({key: "yes please"})


@pytest.mark.parametrize(
    ("classes", "expected"),
    [("", None), ("  ", None), ("1", {1}), ("cat, 0", {0, 2}), ("a dog", {1}), ("7", {3})],  # a class may be named 7
)
def test_classes_by_index_or_name(classes, expected):
    assert Settings(classes=classes).class_indices(("bird", "a dog", "cat", "7"), 4) == expected


@pytest.mark.parametrize("classes", ["4", "-1", "Cat", "cat,,bird", "1.0"])
def test_a_class_that_does_not_exist_is_named(classes):
    with pytest.raises(InputError, match=r"has no class .*; allowed: 0 to 3; names: bird, a dog, cat, fish"):
        Settings(classes=classes).class_indices(("bird", "a dog", "cat", "fish"), 4)
