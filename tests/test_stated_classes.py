"""Class names and stuff that a user states in place of what the source says."""

import pytest

from m2f.model_facts import ModelFacts
from m2f.preprocess import Preprocessing
from m2f_export.export_errors import ExportError
from m2f_export.sources.base import Source
from m2f_export.stated_classes import with_names, with_stuff

NAMES = ("cat", "sky, grey", "dog")
SOURCE = Source(
    kind="", network=None, preprocessing=Preprocessing(scale=None), num_classes=3,
    facts=ModelFacts(class_names=NAMES, thing_classes=frozenset({0})),
)  # fmt: skip


@pytest.mark.parametrize(
    ("stuff", "things"),
    [
        ("sky, grey", {0, 2}),
        ("cat,1", {2}),
        ('["sky, grey", 0]', {2}),
        ("2", {0, 1}),
        ("[]", {0, 1, 2}),
        ("", {0, 1, 2}),
    ],
)
def test_stuff_is_given_by_names_or_indices(stuff, things):
    assert with_stuff(SOURCE, stuff).facts == ModelFacts(class_names=NAMES, thing_classes=frozenset(things))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"circle\nring\nstar", ("circle", "ring", "star")),
        (b"\xef\xbb\xbfcircle\r\n  ring \r\na, b\r\n\r\n\n", ("circle", "ring", "a, b")),
        ("größe\n日本\nx\u2028y\n".encode(), ("größe", "日本", "x\u2028y")),
    ],
)
def test_names_are_the_lines_of_a_file(content, names, tmp_path):
    (tmp_path / "classes.txt").write_bytes(content)
    stated = with_names(SOURCE, tmp_path / "classes.txt")
    assert stated.facts == ModelFacts(class_names=names, thing_classes=frozenset({0}))
    assert with_stuff(stated, names[1]).facts.thing_classes == {0, 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb", r"classes\.txt has 2 names; allowed: 3, one for each class"),
        (b"a\nb\nc\nd", r"classes\.txt has 4 names"),
        (b"a\n\nc\n", r"classes\.txt: line 2 is empty; allowed: a class name on each line"),
        (b" \n", r"classes\.txt: line 1 is empty"),
        (b"", r"classes\.txt is empty"),
        (b"a\n\xff\nc", r"classes\.txt is not text in UTF-8: .*0xff"),
        (b"<html><body>Not found</body></html>", r"classes\.txt is a web page"),
        (b"a\n" * (1 << 24), r"classes\.txt is larger than a configuration can be"),
        (None, r"classes\.txt: no such file"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_file_that_is_no_list_of_the_classes_is_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(ExportError, match=message):
        with_names(SOURCE, tmp_path / "classes.txt")
