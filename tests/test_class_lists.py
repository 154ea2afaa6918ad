"""Text that names classes, whatever the names hold: at the settings, and through `m2f predict`."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from hypothesis import given, settings
from hypothesis import strategies as st

from m2f.errors import InputError
from m2f.settings import Settings
from m2f_cli.main import main
from m2f_client import InvalidRequest
from m2f_client.fake import result_of, stacked

NAMES = (
    "road", "road, route", "route", "a=b", "x=0.5,y", 'the "big" one', "5", "Fußgänger", "cafe\u0301", " outer ", "",
    "[0]", "a: b", "one, two", "one, two, three", "three", "it's", "{1}", "\U0001f6b2 bike",
)  # fmt: skip


ROOT = Path(__file__).parents[1]


def labels(text, names=NAMES):
    return Settings(classes=text).class_indices(names, len(names))


def thresholds(text, names=NAMES):
    found = Settings(class_score_thresholds=text).thresholds(names, len(names))
    return {index: value for index, value in enumerate(found.tolist()) if value}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("road, route", {1}),  # the longest name, not road and route
        ("road,route", {0, 2}),
        ("route, road", {0, 2}),
        ("route,road, route", {2, 1}),
        ("one, two, three", {14}),
        ("three,one, two", {15, 13}),
        ("a=b, x=0.5,y", {3, 4}),
        ('the "big" one,it\'s', {5, 16}),
        ("5", {6}),  # the class of this name
        ("4", {4}),
        ("a: b ,  {1}", {12, 17}),
        ("Fußgänger,\U0001f6b2 bike", {7, 18}),
        ("caf\u00e9", {8}),  # the same letters, typed on another system
        ("outer", {9}),
        (" outer ,road", {9, 0}),
        ("road,,route", {0, 10, 2}),  # a class has no letters in its name
        ("[0]", {11}),  # a name, not a list
        ("[0], road", {11, 0}),
        ('["road, route"]', {1}),
        (' ["road", 5, "5", " outer ", ""] ', {0, 5, 6, 9, 10}),  # a number is an index, a string is a name first
        ('["4"]', {4}),
        ('["caf\\u00e9"]', {8}),
        ("[]", None),
        (" ", None),
    ],
)
def test_the_classes_that_a_text_means(text, expected):
    assert labels(text) == (None if expected is None else frozenset(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("road, route=0.5", {1: 0.5}),
        ("road, route=0.5,route=0.25", {1: 0.5, 2: 0.25}),
        ("a=b=0.5", {3: 0.5}),
        ("x=0.5,y=0.25", {4: 0.25}),
        ('the "big" one = 1e-1', {5: pytest.approx(0.1)}),
        ("5=0.5,4=0.25", {6: 0.5, 4: 0.25}),
        ("a: b=1, outer =0.5", {12: 1, 9: 0.5}),
        ("one, two, three=0.5,one, two=0.25", {14: 0.5, 13: 0.25}),
        ('{"road, route": 0.5, "4": 0.25, "": 1}', {1: 0.5, 4: 0.25, 10: 1}),
        ("{}", {}),
        ("{1}=0.5", {17: 0.5}),
        ("[0]=0.5", {11: 0.5}),
    ],
)
def test_the_thresholds_that_a_text_means(text, expected):
    assert thresholds(text) == expected


def test_longer_readings_are_given_up_where_the_rest_makes_no_sense():
    names = ("a", "a, b", "b, c", "c")
    assert labels("a, b,c", names) == {1, 3}
    assert labels("a, b, c", ("a", "a, b", "b, c")) == {0, 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raod, route", "has no class 'raod'; allowed: 0 to 18; names: road, \"road, route\", route, a=b"),
        ("road, route, rotue", "has no class 'rotue'"),
        ('["rode"]', "has no class 'rode'"),
        ("[19]", "has no class 19; allowed: 0 to 18"),
        ("[-1]", "has no class -1"),
        ("[1.5]", "must be a string of class indices or names, comma-separated or a JSON list; got '[1.5]'"),
        ("[true]", "must be a string of class indices"),
        ('[["road"]]', "must be a string of class indices"),
        ("[null]", "must be a string of class indices"),
        ('[{"road": 1}]', "must be a string of class indices"),
        ('{"road": 1}', "has no class '{\"road\": 1}'"),
        ('["road"', "has no class '[\"road\"'"),
        ("[" * 60_000, "has no class '[[["),
        ("e\u0301\u0323" * 30_000, "has no class"),
    ],
)  # fmt: skip
def test_classes_that_there_are_not(text, message):
    with pytest.raises(InputError) as error:
        labels(text)
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raod, route=0.5", "has no class 'raod, route'; allowed: 0 to 18; names: road"),
        ("road=0.5,raod=0.5", "has no class 'raod'"),
        ("0.5,road=0.5", "has no class '0.5,road'"),
        ("road=0.5,=0.5", "must be a string such as"),
        ("road=1.5,route=0.5", "a JSON object, each threshold from 0 to 1; got 'road=1.5'"),
        ("road=,route=0.5", "must be a string such as"),
        ("road=0.5,,route=0.5", "has no class ',route'"),
        ('{"road": 0.5, "0": 0.5}', "has class 0 twice"),
        ('{"road": 0.5, "road": 0.5}', "has class 0 twice"),
        ('{"road": 1.5}', "must be a string such as"),
        ('{"road": NaN}', "must be a string such as"),
        ('{"road": "0.5"}', "must be a string such as"),
        ('{"road": true}', "must be a string such as"),
        ('{"road": {"a": 1}}', "must be a string such as"),
        ('{"raod": 0.5}', "has no class 'raod'"),
        ('["road", 0.5]', "must be a string such as"),
        ('{"road": 0.5', "must be a string such as"),
        ('{"a":' * 12_000, "must be a string such as"),
    ],
)  # fmt: skip
def test_thresholds_that_there_are_not(text, message):
    with pytest.raises(InputError) as error:
        thresholds(text)
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


def test_names_in_a_message_can_be_shown_and_sent():
    with pytest.raises(InputError) as error:
        labels("cat", ("dog", "a, b", "\ud800", "a\nb", "Fuß, Gang", ' "'))
    assert str(error.value).endswith(r'names: dog, "a, b", "\ud800", "a\nb", "Fuß, Gang", " \""')
    str(error.value).encode()


def slow_labels(words, names):
    """What the words between commas mean: of all readings, the one whose first entries are longest."""
    if not words:
        return []
    for end in range(len(words), 0, -1):
        name = ",".join(words[:end])
        rest = slow_labels(words[end:], names) if name in names else None
        if rest is not None:
            return [names.index(name), *rest]
    return None


@settings(max_examples=100)
@given(st.lists(st.text("ab,", min_size=1, max_size=5), min_size=1, max_size=8, unique=True), st.data())
def test_the_longest_name_counts(names, data):
    text = ",".join(data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=6)))
    expected = [names.index(text)] if text in names else slow_labels(text.split(","), names)
    assert labels(text, tuple(names)) == set(expected)


@settings(max_examples=100)
@given(st.lists(st.text('a1,= "[]{:e\u0301', max_size=8), min_size=1, max_size=5), st.data())
def test_every_class_can_be_named(names, data):
    """As JSON always; between commas unless its name is empty. Of classes of one name the first is meant."""
    names = tuple(names)
    name = data.draw(st.sampled_from(names))
    index = names.index(name)
    assert labels(json.dumps([name]), names) == {index}
    assert thresholds(json.dumps({name: 0.5}), names) == {index: 0.5}
    if name.strip():
        assert thresholds(f"{name}=0.5", names) == {index: 0.5}
        assert labels(name, names) == {index}


@settings(max_examples=200)
@given(st.text('a,=0.5[]{}":1 ', max_size=30))
def test_any_text_is_read_or_refused(text):
    for read in (labels, thresholds):
        with contextlib.suppress(InputError):
            read(text)


def found_by(url, *options):
    """Run `m2f predict` on an example image; return the labels found, or the error."""
    ran = CliRunner().invoke(
        main, ["predict", "--url", url, str(ROOT / "examples/images/scene_1.jpg"), "--jsonl", "-", *options]
    )
    if ran.exit_code:
        return ran.stderr
    return {each["category_id"] - 1 for line in ran.stdout.splitlines() for each in json.loads(line)["instances"]}


BY_NAME = [
    (["--classes", "road, route"], {1}),
    (["--classes", '["road, route", 5]'], {1, 5}),
    (["--parameter", "classes=road,route"], {0, 2}),
    (["--parameter", "class_score_thresholds=road, route=0.99,a=b=1"], set(range(len(NAMES))) - {1, 3}),
    (["--parameter", 'class_score_thresholds={"road, route": 0.99, "2": 1}'], set(range(len(NAMES))) - {1, 2}),
]


@pytest.mark.parametrize(("options", "expected"), BY_NAME)
def test_predict_takes_any_name(options, expected):
    def answer(request):
        try:
            settings = Settings().override(request.parameters)
            wanted = settings.class_indices(NAMES, len(NAMES)) or range(len(NAMES))
            scores = settings.thresholds(NAMES, len(NAMES))
        except InputError as error:
            raise InvalidRequest(str(error)) from None
        rows = [index for index in wanted if scores[index] < 0.9]
        return stacked([result_of(np.ones((len(rows), 4, 4)), labels=rows)])

    with serving(answer, class_names=json.dumps(NAMES)) as fake:
        assert found_by(fake.url, *options) == expected
        assert "has no class 'raod'" in found_by(fake.url, "--classes", "raod, route")


@pytest.mark.server
@pytest.mark.more
def test_predict_takes_any_name_of_the_real_server(tmp_path):
    from m2f_server import serve

    names = ("road, route", "a=b", "triangle", "star", "ring")
    repository = shutil.copytree(ROOT / "model_repository", tmp_path / "repository")
    for step in ("postprocess", "panoptic"):
        config = repository / f"mask2former_{step}/config.pbtxt"
        text = config.read_text().replace(r"\"circle\"", r"\"road, route\"").replace(r"\"square\"", r"\"a=b\"")
        config.write_text(text)
    with serve(model_repository=repository, config_name="cpu", http_port=0, grpc_port=0, metrics_port=0) as started:
        url = f"grpc://{started.grpc_url}"
        every = found_by(url)
        assert {0, 1} < every
        assert found_by(url, "--classes", "road, route") == {0}
        assert found_by(url, "--classes", json.dumps(["a=b", 0])) == {0, 1}
        assert found_by(url, "--parameter", "class_score_thresholds=road, route=1,a=b=1") == every - {0, 1}
        assert f'names: "road, route", {", ".join(names[1:])}' in found_by(url, "--classes", "route")
