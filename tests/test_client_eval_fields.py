"""JSON files and their fields, as people and tools write them."""

import gzip
import json
import os
import zipfile

import pytest
from memory import peak_of

from m2f_client.evaluation import fields
from m2f_client.evaluation.fields import InvalidDataset, Row, read_json, rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32"])
def test_every_encoding_of_json_is_read(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"name": "Fußgänger"}\r\n', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"name": "Fußgänger"}


def _gzip(path):
    path.write_bytes(gzip.compress(b"{}"))


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.json", "{}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b" \n"), "is empty"),
        (lambda path: path.write_text("{"), "is not JSON"),
        (lambda path: path.write_text('{"a": 1}\n{"a": 2}\n'), "several JSON documents, as in JSON Lines"),
        (lambda path: path.write_text("images: []"), "is not JSON"),
        (lambda path: path.write_text("<!doctype html>"), "is not JSON but HTML or XML"),
        (lambda path: path.write_bytes(b"\xff\xfe\xff"), "is not JSON"),
        (lambda path: path.write_bytes(b'{"a": "\xe4"}'), "is not JSON"),
        (lambda path: path.write_text("[" * 100_000), "nested too deeply"),
        (lambda path: path.write_text("9" * 5000), "is not JSON"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"), "git lfs pull"),
        (_gzip, "compressed with gzip; unpack it with gunzip"),
        (_zip, "a zip archive"),
        (lambda path: path.mkdir(), "not a file, but a folder, a pipe or a device"),
        (os.mkfifo, "not a file, but a folder, a pipe or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file, but a folder, a pipe or a device"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda _: None, "No such file"),
    ],
)
def test_what_is_no_json_file(tmp_path, make, message):
    path = tmp_path / "a.json"
    make(path)
    with pytest.raises(InvalidDataset, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fields, "MAX_FILE_BYTES", 100)
    (tmp_path / "a.json").write_text(json.dumps("x" * 98))
    read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps("x" * 99))
    with pytest.raises(InvalidDataset, match="has 101 bytes; allowed are 100"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text", ["[[],[],[]]", "[{},{}]", "[1,1,1]", "[1.5,2.5]", '[{"":1}]', '[{"a":[{"a":1}]}]', '["\U0001f6b2"]']
)
def test_the_memory_of_a_file_is_bounded(tmp_path, text):
    """40 times its size, as `MAX_FILE_BYTES` says."""
    path = tmp_path / "a.json"
    path.write_text("[" + ",".join([text] * (100_000 // len(text))) + "]")
    _, peak = peak_of(lambda: read_json(path))
    assert peak <= 40 * path.stat().st_size


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), (3.0, 3), ("3", 3), (" -3 ", -3), (-3, -3), (10**30, 10**30), (2**63, 2**63), ("٣", 3)],
)
def test_whole_numbers(value, expected):
    assert Row("a", {"id": value}).whole("id") == expected


@pytest.mark.parametrize(
    "value",
    [None, True, 3.5, float("nan"), float("inf"), "3.0", "three", "", "-", "--3", "9" * 20, "9" * 5000, [3], {}],
)
def test_what_is_no_whole_number(value):
    with pytest.raises(
        InvalidDataset, match=r"^file: images\[2\] has no valid 'id': .*; allowed: a whole number$"
    ) as error:
        Row("file: images[2]", {"id": value}).whole("id")
    assert len(str(error.value)) < 200


def test_null_is_as_absent():
    for values in ({}, {"a": None}):
        row = Row("a", values)
        assert (row.whole("a", absent=4), row.number("a", 0, 1, absent=0.5), row.flag("a", absent=True)) == (
            4,
            0.5,
            True,
        )
        for read in (row.whole, row.text, row.rows, row.part, row.flag, lambda name, row=row: row.number(name, 0, 1)):
            with pytest.raises(InvalidDataset, match="a has no valid 'a': it is absent or null; allowed: "):
                read("a")


@pytest.mark.parametrize(
    ("value", "expected"), [(0, False), (1, True), (True, True), (False, False), ("1", True), (0.0, False)]
)
def test_flags(value, expected):
    assert Row("a", {"a": value}).flag("a") is expected


@pytest.mark.parametrize("value", [2, -1, "yes", "true", [], 0.5])
def test_what_is_no_flag(value):
    with pytest.raises(InvalidDataset, match="allowed: a whole number from 0 to 1"):
        Row("a", {"a": value}).flag("a")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "0.5", True, [0.5], 10**400])
def test_what_is_no_number(value):
    with pytest.raises(InvalidDataset, match="allowed: a number from 0 to 1"):
        Row("a", {"a": value}).number("a", 0, 1)


def test_an_error_names_the_row_and_its_id():
    first, second = rows("file: annotations", [{"id": 7}, {"iscrowd": 5}])
    with pytest.raises(InvalidDataset, match=r"^file: annotations\[0\] has no valid 'area': .* \(id 7\)$"):
        first.number("area", 0, 1)
    with pytest.raises(InvalidDataset, match=r"^file: annotations\[1\] has no valid 'iscrowd': got 5; allowed: .* 1$"):
        second.flag("iscrowd")
    with pytest.raises(InvalidDataset, match=r"file: annotations\[1\] is None; allowed: an object"):
        list(rows("file: annotations", [{}, None]))
