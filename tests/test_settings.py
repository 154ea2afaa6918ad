import json
import re
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest

from m2f.errors import InputError
from m2f.preprocess import Preprocessing
from m2f.settings import KEYS, Settings

THRESHOLDS = 'a string such as "circle=0.7,2=0.3" or a JSON object, each threshold from 0 to 1'


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
        ("classes", 3, "a string of class indices or names, comma-separated or a JSON list"),
        ("class_score_thresholds", 0.5, THRESHOLDS),
        ("class_score_thresholds", "0.5", THRESHOLDS),
        ("class_score_thresholds", "=0.5", THRESHOLDS),
        ("class_score_thresholds", "1=", THRESHOLDS),
        ("class_score_thresholds", "1=1.5", THRESHOLDS),
        ("class_score_thresholds", "1=nan", THRESHOLDS),
        ("panoptic_score_threshold", 1.5, "a number from 0 to 1"),
        ("panoptic_overlap_threshold", "0.8", "a number from 0 to 1"),
        ("panoptic_filter_low_score", 1, "true or false"),
        ("semantics", "detectron3", "one of: mmdet, detectron2, huggingface, tao"),
        ("semantics", 1, "one of: mmdet, detectron2, huggingface, tao"),
    ],
)
def test_a_wrong_value_names_the_key_the_value_and_what_is_allowed(key, value, allowed):
    with pytest.raises(InputError, match=re.escape(f"parameter '{key}' must be {allowed}; got {value!r}")):
        Settings().override({key: value})


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("classes", "class_score_thresholds", "semantics")])
def test_a_repository_value_that_is_not_json_is_refused(key):
    with pytest.raises(InputError, match=f"parameter '{key}' must be"):
        Settings.from_repository({key: "yes please"})


@pytest.mark.parametrize(
    ("classes", "expected"),
    [("", None), ("  ", None), ("1", {1}), ("cat, 0", {0, 2}), ("a dog", {1}), ("7", {3})],  # a class may be named 7
)
def test_classes_by_index_or_name(classes, expected):
    assert Settings(classes=classes).class_indices(("bird", "a dog", "cat", "7"), 4) == expected


def test_of_two_classes_with_one_name_the_first_is_meant():
    names = ("bird", "cat", "cat", "bird")
    assert Settings(classes="cat,bird,cat").class_indices(names, 4) == {0, 1}
    assert Settings(class_score_thresholds="cat=0.5").thresholds(names, 4).tolist() == [0, 0.5, 0, 0]


def test_a_name_beyond_the_classes_of_the_logits_is_none():
    for attempt in (Settings(classes="cat").class_indices, Settings(class_score_thresholds="cat=1").thresholds):
        with pytest.raises(InputError, match="has no class 'cat'; allowed: 0 to 0; names: bird, cat"):
            attempt(("bird", "cat"), 1)


class CountedNames(tuple):
    """Class names that count how often they are looked at."""

    looks = 0

    def _look(self, name, *arguments):
        CountedNames.looks += 1
        return getattr(super(), name)(*arguments)

    def __getitem__(self, index):
        return self._look("__getitem__", index)

    def __iter__(self):
        return self._look("__iter__")

    def __contains__(self, name):
        return self._look("__contains__", name)

    def index(self, *arguments):
        return self._look("index", *arguments)


def test_many_words_are_found_at_once():
    """Most of 64 KiB, of 1,203 names; found one by one they took half a second."""
    names = CountedNames(f"{i:x}" for i in range(1203))
    thresholds = ",".join(f"{name}=0.5" for name in names)
    CountedNames.looks = 0
    assert Settings(classes=",".join(["4b2"] * 16_000)).class_indices(names, 1203) == {1202}
    assert Settings(class_score_thresholds=thresholds).thresholds(names, 1203).tolist() == [0.5] * 1203
    assert CountedNames.looks <= 4


@pytest.mark.parametrize("classes", ["4", "-1", "Cat", "cat,,bird", "1.0"])
def test_a_class_that_does_not_exist_is_named(classes):
    with pytest.raises(InputError, match=r"has no class .*; allowed: 0 to 3; names: bird, a dog, cat, fish"):
        Settings(classes=classes).class_indices(("bird", "a dog", "cat", "fish"), 4)


def test_a_message_is_short_however_much_was_sent():
    names = tuple(f"a class of number {i}" for i in range(5000))
    for attempt in (
        lambda: Settings().override({"x" * 1_000_000: 1}),
        lambda: Settings().override({"semantics": "x" * 1_000_000}),
        lambda: Settings(classes="x" * 1_000_000).class_indices(names, 5000),
        lambda: Settings(classes="9" * 5000).class_indices(names, 5000),  # too many digits for int()
        lambda: Settings(class_score_thresholds="x" * 1_000_000 + "=1").thresholds(names, 5000),
    ):
        with pytest.raises(InputError) as error:
            attempt()
        assert len(str(error.value)) < 4096


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0.5] * 5),
        (" ", [0.5] * 5),
        ("0=0.7", [0.7, 0.5, 0.5, 0.5, 0.5]),
        ("cat = 1, 1=0", [0.5, 0, 1, 0.5, 0.5]),
        ("7=0.25", [0.5, 0.5, 0.5, 0.25, 0.5]),  # a class may be named 7
        ("a=b=0.125", [0.5, 0.5, 0.5, 0.5, 0.125]),
    ],
)
def test_thresholds_of_single_classes(text, expected):
    settings = Settings(score_threshold=0.5, class_score_thresholds=text)
    got = settings.thresholds(("bird", "a dog", "cat", "7", "a=b"), 5)
    np.testing.assert_array_equal(got, np.float32(expected))


@pytest.mark.parametrize("text", ["4=0.5", "fish=0.5,Cat=0.5", "-1=0"])
def test_a_threshold_of_a_class_that_does_not_exist_names_it(text):
    with pytest.raises(InputError, match=r"'class_score_thresholds' has no class .*; allowed: 0 to 3; names: bird"):
        Settings(class_score_thresholds=text).thresholds(("bird", "a dog", "cat", "fish"), 4)


def test_a_class_has_one_threshold():
    with pytest.raises(InputError, match="'class_score_thresholds' has class 2 twice"):
        Settings(class_score_thresholds="cat=0.5,2=0.5").thresholds(("bird", "a dog", "cat"), 3)


@pytest.mark.parametrize(("semantics", "column"), [("mmdet", -1), ("detectron2", -1), ("huggingface", -1), ("tao", 0)])
def test_no_object_is_where_the_semantics_have_it_unless_it_is_given(semantics, column):
    assert Settings(semantics=semantics).background_label_id == column
    assert Settings.from_repository({"semantics": semantics}).background_label_id == column
    given = {"semantics": semantics, "background_label_id": "-1"}
    assert Settings.from_repository(given).background_label_id == -1


def test_a_request_for_other_semantics_leaves_no_object_where_the_model_has_it():
    assert Settings(semantics="tao").override({"semantics": "mmdet"}).background_label_id == 0
    assert Settings().override({"semantics": "tao"}).background_label_id == -1


@pytest.mark.parametrize(("kind", "head"), [(Settings, "default"), (Preprocessing, "default")])
def test_the_documentation_has_every_key_with_its_meaning_and_default(kind, head):
    """The tables of docs/parameters.md, made from the fields."""
    rows = []
    for field in fields(kind):
        default = "required" if field.default is MISSING else json.dumps(field.default)
        if field.name == "background_label_id":
            default = Settings().background_label_id
        rows.append(f"| `{field.name}` | {field.metadata['meaning']} | `{default}` |\n")
        assert len(field.metadata["meaning"]) <= 120
    table = f" | what it does | {head} |\n|---|---|---|\n" + "".join(rows)
    page = Path(__file__).parents[1] / "docs/parameters.md"
    assert table in page.read_text(), f"{page} should have this table:\n{table}"
