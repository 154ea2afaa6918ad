import pytest

from m2f.errors import InputError
from m2f.model_facts import ModelFacts


def test_a_repository_that_says_nothing():
    assert ModelFacts.from_repository({"score_threshold": "0.5"}) == ModelFacts()
    assert ModelFacts() == ModelFacts(class_names=(), thing_classes=None, mask_stride=4)


def test_a_repository_that_says_all():
    parameters = {"class_names": '["cat", "sky"]', "thing_classes": "[0]", "mask_stride": " 8 "}
    facts = ModelFacts.from_repository(parameters)
    assert facts == ModelFacts(class_names=("cat", "sky"), thing_classes=frozenset([0]), mask_stride=8)
    assert [facts.is_thing(label) for label in (0, 1)] == [True, False]
    assert ModelFacts().is_thing(1)


@pytest.mark.parametrize("text", ["", "all", "3", "[-1]", "[1.0]", "[true]", '["cat"]', "{}"])
def test_thing_classes_that_are_no_indices_are_refused(text):
    with pytest.raises(InputError, match="'thing_classes' must be a JSON list of class indices; got"):
        ModelFacts.from_repository({"thing_classes": text})


@pytest.mark.parametrize("text", ["", "cat", "[1]", '"cat"'])
def test_class_names_that_are_no_strings_are_refused(text):
    with pytest.raises(InputError, match="'class_names' must be a JSON list of strings; got"):
        ModelFacts.from_repository({"class_names": text})


@pytest.mark.parametrize("text", ["", "0", "-1", "4.0", "four"])
def test_a_stride_that_is_no_number_is_refused(text):
    with pytest.raises(InputError, match="'mask_stride' must be a whole number >= 1; got"):
        ModelFacts.from_repository({"mask_stride": text})
