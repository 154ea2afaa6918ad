"""The Parquet table of `m2f predict` and `m2f merge`: an instance a row, and no image missing."""

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from fake_server import serving
from pycocotools import mask as coco_mask

from m2f_cli.main import main
from m2f_client import InvalidRequest
from m2f_client.fake import result_of, stacked
from m2f_client.predict import parquet
from m2f_client.predict.shards import key_of

IMAGES = {"none.png": b"\x00", "one.png": b"\x01", "two.png": b"\x02", "bad.png": b"\xff"}


def answer(request):
    """Find as many instances as the last byte of the image says."""
    last = request.inputs["image"][0, 0][-1]
    if last == 255:
        raise InvalidRequest("not an image")
    masks = np.zeros((last, 4, 5))
    for index in range(last):
        masks[index, index:, 1:3] = 1
    return stacked([result_of(masks)])


@pytest.fixture(scope="module")
def url():
    with serving(answer, class_names='["cat", "dog"]') as fake:
        yield fake.url


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, data in IMAGES.items():
        (tmp_path / name).write_bytes(data)


def predict(url, *options):
    return CliRunner().invoke(main, ["predict", *IMAGES, "--url", url, "--parquet", "out.parquet", *options])


def rows(path="out.parquet"):
    return pq.read_table(path).to_pylist()


def check(table, names):
    """No image is missing, and instances have what COCO's JSON has."""
    assert [row["file_name"] for row in table] == names
    by_name = {name: [row for row in table if row["file_name"] == name] for name in names}
    assert [row["category_id"] for row in by_name["none.png"]] == [None]
    (failed,) = by_name["bad.png"]
    assert "not an image" in failed["error"]
    assert failed["width"] is None
    first, second = by_name["two.png"]
    assert (first["name"], second["name"], first["category_id"], second["category_id"]) == ("cat", "dog", 1, 2)
    assert (first["width"], first["height"], first["bbox"], second["bbox"]) == (5, 4, [1, 0, 2, 4], [1, 1, 2, 3])
    for row in (first, second, *by_name["one.png"]):
        mask = coco_mask.decode({"size": [row["height"], row["width"]], "counts": row["counts"].encode()})
        assert mask.sum() == row["area"] > 0
        assert row["error"] is None


NAMES = ["none.png", "one.png", "two.png", "two.png", "bad.png"]


def test_an_instance_a_row_and_no_image_missing(url):
    done = predict(url)
    assert done.exit_code == 1
    assert "wrote out.parquet" in done.stdout
    check(rows(), NAMES)
    assert {path.name for path in Path().iterdir()} == {*IMAGES, "out.parquet"}


def test_groups_of_rows_lose_none(url, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP", 2)
    predict(url)
    assert pq.ParquetFile("out.parquet").num_row_groups == 3
    check(rows(), NAMES)


def test_a_resumed_run_has_the_rows_of_both(url):
    Path("two.png").rename("away")
    predict(url, "--jsonl", "run.jsonl")
    Path("away").rename("two.png")
    predict(url, "--jsonl", "run.jsonl")
    check(rows(), ["none.png", "one.png", "two.png", "two.png", "bad.png"])


def test_the_table_of_all_shards(url):
    for index in range(3):
        predict(url, "--shard", f"{index}/3", "--jsonl", f"{index}.jsonl")
    done = CliRunner().invoke(main, ["merge", "0.jsonl", "1.jsonl", "2.jsonl", "--parquet", "all.parquet"])
    assert done.exit_code == 0, done.output
    table = sorted(rows("all.parquet"), key=lambda row: NAMES.index(row["file_name"]))
    check(table, NAMES)


def test_no_images_at_all_are_an_empty_table(url):
    """As of a shard to which no image belongs."""
    other = f"{1 - key_of('one.png') % 2}/2"
    done = CliRunner().invoke(
        main,
        ["predict", "one.png", "--url", url, "--shard", other, "--jsonl", "x", "--parquet", "out.parquet"],
    )
    assert done.exit_code == 0, done.output
    assert rows() == []
    assert "counts" in pq.read_schema("out.parquet").names


def test_the_table_never_replaces_another_file(url):
    done = predict(url, "--jsonl", "./out.parquet")
    assert (done.exit_code, "--jsonl and --parquet are the same file" in done.stderr) == (2, True)
    for other in (["run.jsonl"], ["x.jsonl", "--out", "run.jsonl"]):
        done = CliRunner().invoke(main, ["merge", *other, "--parquet", "./run.jsonl"])
        assert (done.exit_code, "and --parquet are the same file" in done.stderr) == (2, True)


def test_a_missing_package_is_said_before_the_first_image(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for done in (predict(url), CliRunner().invoke(main, ["merge", "0.jsonl", "--parquet", "out.parquet"])):
        assert done.exit_code == 2
        assert "--parquet needs: pip install 'm2f[parquet]'" in done.stderr


def test_a_name_that_is_not_utf8(url):
    name = os.fsdecode(b"\xff.png")
    Path(name).write_bytes(b"\x01")
    CliRunner().invoke(main, ["predict", name, "--url", url, "--parquet", "out.parquet"])
    assert [row["file_name"] for row in rows()] == ["?.png"]


@pytest.mark.parametrize("target", ["gone/out.parquet", "/proc/out.parquet"])
def test_a_table_that_cannot_be_written_is_one_message(url, target):
    done = CliRunner().invoke(main, ["predict", "one.png", "--url", url, "--parquet", target])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("m2f: cannot write ")
