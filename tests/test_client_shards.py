"""`m2f predict --shard` and `m2f merge` on a fake server: every image once, whatever was killed, lost or doubled."""

import json
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from pycocotools.coco import COCO
from until import until

from m2f_cli.main import main
from m2f_client import InvalidRequest, ServerUnavailable
from m2f_client.fake import result_of, stacked
from m2f_client.predict.shards import Shard, key_of

COUNT, SHARDS = 60, 3
M2F = Path(sys.executable).with_name("m2f")


class Server:
    """Finds as many instances as the last byte of the image says; fails at images that end with 255."""

    def __init__(self):
        self.delay, self.life, self.released = 0.0, 10**9, threading.Event()

    def answer(self, request):
        self.released.wait(self.delay)
        self.life -= 1
        if self.life < 0:
            raise ServerUnavailable("no server")
        last = request.inputs["image"][0, 0][-1]
        if last == 255:
            raise InvalidRequest("not an image")
        masks = np.zeros((last % 3, 4, 5))
        masks[:, 1:, 1 : 2 + last % 4] = 1
        return stacked([result_of(masks, scores=[0.5] * len(masks), labels=[0] * len(masks))])


@pytest.fixture(scope="module")
def answering():
    answering = Server()
    with serving(answering.answer, class_names='["cat", "dog"]') as fake:
        answering.url = fake.url
        yield answering


@pytest.fixture
def server(answering):
    """A server that answers at once."""
    answering.delay, answering.life, answering.released = 0.0, 10**9, threading.Event()
    yield answering
    answering.released.set()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for index in range(COUNT):
        (tmp_path / "in" / f"{index:03d}.png").write_bytes(bytes([index]))
    return tmp_path


@pytest.fixture(scope="module")
def finished():
    """Room for the journals of all shards, which the first test that needs them makes."""
    return {}


NAMES = {f"in/{index:03d}.png" for index in range(COUNT)}


def m2f(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def shard(server, index, *options, sources=("in",), count=SHARDS):
    given = ["predict", *sources, "--url", server.url, "--shard", f"{index}/{count}"]
    return m2f(*given, "--jsonl", f"{index}.jsonl", *options)


@pytest.fixture
def parts(server, folder, finished):  # noqa: ARG001 (makes the files)
    """The journals of all shards."""
    paths = [Path(f"{index}.jsonl") for index in range(SHARDS)]
    if not finished:
        assert [shard(server, index).exit_code for index in range(SHARDS)] == [0] * SHARDS
        finished.update({path: path.read_bytes() for path in paths})
    for path, journal in finished.items():
        path.write_bytes(journal)
    return paths


def merge(*parts):
    return m2f("merge", *parts, "--out", "all.json")


def images_of(path):
    return [json.loads(line).get("file_name") for line in Path(path).read_text().splitlines()]


# Which images


def test_each_image_is_in_one_shard(parts):
    in_shards = [images_of(part)[:-1] for part in parts]
    assert sorted(name for names in in_shards for name in names) == sorted(NAMES)
    assert min(map(len, in_shards)) > 0


def test_the_hash_of_a_name_never_changes():
    """Or a run that is resumed with a newer m2f would do images again, and leave others out."""
    assert key_of("photos/a.jpg") == 0x9C635A2A46932F01
    assert key_of("s3://bucket/ä\udcff.jpg") == 0xF2E7E33278B00A3F
    assert [Shard.parse("2/3").has(key) for key in (1, 2, 5, 6)] == [False, True, True, False]


def test_shards_are_of_equal_size():
    sizes = np.bincount([key_of(f"images/{number:07d}.jpg") % 8 for number in range(20_000)])
    assert abs(sizes - 2500).max() < 200  # four times the standard deviation


def test_a_name_counts_once_however_often_it_is_given(server, folder):  # noqa: ARG001
    sources = ("in", "in/*.png", "./in/003.png")
    assert [shard(server, index, sources=sources).exit_code for index in range(SHARDS)] == [0] * SHARDS
    assert merge("0.jsonl", "1.jsonl", "2.jsonl").exit_code == 0


def test_more_shards_than_images(server, folder):  # noqa: ARG001
    sources = ("in/001.png", "in/002.png")
    parts = [f"{index}.jsonl" for index in range(8)]
    assert [shard(server, index, sources=sources, count=8).exit_code for index in range(8)] == [0] * 8
    assert merge(*parts).exit_code == 0
    assert len(COCO("all.json").imgs) == 2


# Merge


def test_the_merged_file_has_what_one_run_finds(server, parts):
    whole = json.loads(m2f("predict", "in", "--url", server.url, "--json").stdout)
    done = merge(*reversed(parts))
    assert (done.exit_code, done.stdout) == (0, "60 images of 3 shards\nwrote all.json\n")
    merged = json.loads(Path("all.json").read_text())
    assert (merged["info"], merged["categories"]) == (whole["info"], whole["categories"])
    for coco in (merged, whole):
        names = {image["id"]: image.pop("file_name") for image in coco["images"]}
        coco["annotations"] = sorted(
            (names[row.pop("image_id")], row["score"], row["bbox"]) for row in coco["annotations"]
        )
        assert len({image["id"] for image in coco["images"]}) == COUNT
        assert set(names.values()) == NAMES
    assert merged["annotations"] == whole["annotations"]
    assert len(merged["annotations"]) == COUNT  # 0, 1 and 2 in turn
    assert all(COCO("all.json").annToMask(row).sum() == row["area"] for row in COCO("all.json").anns.values())


def test_failed_images_are_in_the_merged_file_and_end_no_shard(server, folder):
    for name in ("bad.png", "worse.png"):
        (folder / "in" / name).write_bytes(b"\xff")
    (folder / "names").write_text("gone.jpg\nftp://host/a.jpg\n")
    for index in range(SHARDS):
        shard(server, index, "--list", "names")
    done = merge(*(f"{index}.jsonl" for index in range(SHARDS)))
    assert done.stdout.startswith("64 images of 3 shards, 4 of them failed\n")
    document = json.loads((folder / "all.json").read_text())
    reasons = {row["file_name"]: row["reason"] for row in document["errors"]}
    assert reasons.keys() == {"in/bad.png", "in/worse.png", "gone.jpg", "ftp://host/a.jpg"}
    assert reasons["gone.jpg"] == "No such file or directory"
    assert len(document["images"]) == COUNT


def test_an_image_that_breaks_a_library_is_one_failed_image(server, folder, monkeypatch):  # noqa: ARG001
    def broken(data):
        if data == b"\x07":
            raise RuntimeError("in a library")
        return data

    monkeypatch.setattr("m2f_client.predict.job.served", broken)
    done = m2f("predict", "in", "--url", server.url, "--jsonl", "run.jsonl")
    assert done.exit_code == 1
    lines = [json.loads(line) for line in Path("run.jsonl").read_text().splitlines()]
    assert [line["error"] for line in lines if "error" in line] == ["RuntimeError: in a library"]
    assert len(lines) == COUNT


def drop(number):
    return lambda lines: lines[:number] + lines[number + 1 :]


HARM = {
    "lost line": (drop(4), r"1.jsonl has \d+ of the \d+ images of shard 1/3, or .*; run its command again"),
    "no last line": (lambda lines: lines[:-1], "1.jsonl is not complete: run its command again"),
    "cut last line": (lambda lines: [*lines[:-1], lines[-1][:40]], "1.jsonl is not complete"),
    "nothing": (lambda _: [], "1.jsonl is not complete"),
    "doubled line": (lambda lines: [lines[2], *lines], r"1.jsonl has in/\d+.png twice; remove one of the lines"),
    "foreign line": (lambda lines: ["{}\n", *lines], "1.jsonl: line 1 was not written by m2f predict --shard"),
    "text": (lambda lines: [*lines, "more\n"], r"1.jsonl: line \d+ was not written by m2f predict --shard"),
    "other image": (
        lambda lines: [re.sub("in/[0-9]+", "in/stranger", lines[0]), *lines[1:]],
        "1.jsonl: in/stranger.png does not belong to shard 1/3; remove the file and run it again",
    ),
    "other shard": (lambda lines: [lines[0].replace('"1/3"', '"0/3"'), *lines[1:]], "was not written by shard 1/3"),
    "no shard": (lambda lines: [*lines[:-1], lines[-1].replace('"1/3"', '"x"')], "1.jsonl: its last line is damaged"),
    "other list": (
        lambda lines: [*lines[:-1], lines[-1].replace('"listing": "60:', '"listing": "61:')],
        "0.jsonl and 1.jsonl were given different images .60:.* and 61:",
    ),
    "other model": (
        lambda lines: [*lines[:-1], lines[-1].replace('"mask2former"', '"parts"')],
        "0.jsonl and 1.jsonl come from different models .mask2former and parts",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_part_is_refused_by_name(parts, harm):
    change, message = HARM[harm]
    part = parts[1]
    part.write_text("".join(change(part.read_text().splitlines(keepends=True))))
    done = merge(*parts)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("m2f: ")
    assert re.search(message, done.stderr)
    assert not Path("all.json").exists()


WRONG = {
    "instances": [None, 1, [None], [{}], [{"category_id": "1"}]],
    "width": [None, 0, -1, "5", 2**40, True],
    "parameters": [None, []],
    "model": [None, 7],
    "file_name": [None, 7, []],
    "overlay": ["../x.png", 7],
    "segments_info": [None, [1]],
}


@pytest.mark.parametrize("member", WRONG)
def test_a_line_with_a_member_of_a_wrong_type_is_refused_by_its_number(parts, member):
    first, *rest = parts[1].read_text().splitlines(keepends=True)
    for value in WRONG[member]:
        parts[1].write_text(json.dumps({**json.loads(first), member: value}) + "\n" + "".join(rest))
        assert merge(*parts).stderr == "m2f: 1.jsonl: line 1 was not written by m2f predict --shard\n"


def test_missing_and_doubled_shards_are_refused_by_name(parts):
    assert "missing: shard 1/3; give the journals of all 3 shards" in merge(parts[0], parts[2]).stderr
    Path("copy.jsonl").write_bytes(parts[1].read_bytes())
    assert "1.jsonl and copy.jsonl are both shard 1/3" in merge(*parts, "copy.jsonl").stderr
    assert "gone.jsonl: No such file or directory" in merge("gone.jsonl").stderr
    assert "in: Is a directory" in merge("in").stderr
    assert m2f("merge", *parts).exit_code == 2


def test_the_merged_file_never_replaces_a_journal(parts):
    before = parts[1].read_bytes()
    done = m2f("merge", *parts, "--out", "./1.jsonl")
    assert done.exit_code == 2
    assert "1.jsonl and --out are the same file" in done.stderr
    assert parts[1].read_bytes() == before


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_shard_that_was_killed_at_its_last_line_is_completed(server, parts, cut):
    before = parts[1].read_bytes()
    parts[1].write_bytes(before[:-cut])
    server.life = 0
    assert shard(server, 1).exit_code == 0
    assert parts[1].read_bytes() == before


def test_parts_of_other_divisions_are_refused(server, parts):
    shard(server, 3, count=4)
    assert "shard 0/3, and 3.jsonl is shard 3/4" in merge(*parts, "3.jsonl").stderr
    m2f("predict", "in", "--url", server.url, "--jsonl", "plain.jsonl")
    assert "plain.jsonl is not complete" in merge("plain.jsonl").stderr


def test_a_shard_with_other_parameters_is_refused(server, parts):
    parts[2].unlink()
    shard(server, 2, "--score-threshold", "0.25")
    assert "other parameters ({} and {'score_threshold': 0.25})" in merge(*parts).stderr


# Restart


def test_killed_shards_run_again_and_each_image_is_there_once(server, folder):
    """kill -9 at random lines of two of three shards; then the merged file has every image once."""
    server.delay = 0.01
    rng = random.Random(5)
    for index in (0, 2):
        journal = folder / f"{index}.jsonl"
        arguments = ["predict", "in", "--url", server.url, "--shard", f"{index}/3", "--jsonl", str(journal)]
        with subprocess.Popen([M2F, *arguments], cwd=folder, stdout=subprocess.DEVNULL) as running:
            lines = rng.randrange(3, 10)
            until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= lines)  # noqa: B023
            running.send_signal(signal.SIGKILL)
    server.released.set()
    assert "is not complete" in merge("0.jsonl", "1.jsonl", "2.jsonl").stderr or not Path("1.jsonl").exists()
    done = [shard(server, index) for index in range(SHARDS)]
    assert [one.exit_code for one in done] == [0] * SHARDS
    assert "resuming from" in done[0].stderr
    assert merge("0.jsonl", "1.jsonl", "2.jsonl").exit_code == 0
    document = json.loads((folder / "all.json").read_text())
    assert sorted(image["file_name"] for image in document["images"]) == sorted(NAMES)


def test_a_lost_server_leaves_the_shard_incomplete(server, parts):
    parts[0].unlink()
    server.life = 5
    assert shard(server, 0, "--timeout", 5).exit_code == 1
    assert "0.jsonl is not complete" in merge(*parts).stderr
    server.life = 10**9
    assert shard(server, 0).exit_code == 0
    assert merge(*parts).exit_code == 0


def test_a_complete_shard_asks_for_nothing_and_stays_the_same(server, parts):
    before = parts[0].read_bytes()
    server.life = 0
    assert shard(server, 0).exit_code == 0
    assert parts[0].read_bytes() == before


def test_images_that_are_added_later_are_done_by_the_same_commands(server, folder, parts):
    (folder / "in" / "new.png").write_bytes(b"\x01")
    again = [index for index in range(SHARDS) if Shard(index, SHARDS).has(key_of("in/new.png"))]
    assert shard(server, again[0]).exit_code == 0
    assert "were given different images" in merge(*parts).stderr
    assert [shard(server, index).exit_code for index in range(SHARDS)] == [0] * SHARDS
    assert merge(*parts).stdout.startswith("61 images")


def test_an_image_that_is_no_longer_a_source_is_refused_by_name(server, folder, parts):
    name = images_of(parts[1])[0]
    (folder / name).unlink()
    before = parts[1].read_bytes()
    assert f"1.jsonl has {name}, which the sources of this run do not have" in shard(server, 1).stderr
    assert parts[1].read_bytes() == before


# Wrong usage


@pytest.mark.parametrize("text", ["3/3", "0/0", "-1/3", "1", "a/b", "1/3/5", "", "1/ 3", "1.5/3"])
def test_a_shard_that_is_none(text):
    done = m2f("predict", "in", "--shard", text, "--jsonl", "x.jsonl")
    assert done.exit_code == 2
    assert f"{text!r} is not I/N with 0 <= I < N" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["in"], 2, "--shard needs --jsonl FILE or --out DIR, of its own for each shard"),
        (["in", "--jsonl", "-"], 2, "--shard needs --jsonl FILE or --out DIR"),
        (["-", "--jsonl", "x"], 2, "--shard takes no image on standard input"),
        (["no*.jpg", "--jsonl", "x"], 1, "no*.jpg: nothing matches"),
        (["empty", "in", "--jsonl", "x"], 1, "empty: no images in this folder"),
        (["--list", "none", "--jsonl", "x"], 1, "none: no names in this list"),
        (["--list", "gone", "--jsonl", "x"], 1, "m2f: gone: the list cannot be read: No such file or directory"),
        (["--jsonl", "x"], 2, "nothing to do: name an IMAGE, or a --list of them"),
    ],
)
def test_a_shard_that_could_not_be_merged_does_not_begin(folder, arguments, code, message):
    (folder / "empty").mkdir()
    (folder / "none").write_text("\n\n")
    done = m2f("predict", *arguments, "--shard", "0/1", "--url", "127.0.0.1:1")
    assert done.exit_code == code
    assert message in done.stderr
    assert not Path("x").exists()


def test_a_shard_has_a_folder_of_its_own(server, folder):  # noqa: ARG001
    from PIL import Image

    for number in range(6):
        Image.new("RGB", (5, 4), (number, 0, 1)).save(f"in/picture{number}.png")
    given = ["predict", "in/picture*.png", "--url", server.url]
    assert m2f(*given, "--shard", "0/2", "--out", "out0").exit_code == 0
    assert "comes from a run with other settings (model mask2former, overlay, shard 0/2)" in (
        m2f(*given, "--shard", "1/2", "--out", "out0").stderr
    )
    assert m2f(*given, "--shard", "1/2", "--out", "out1").exit_code == 0
    assert m2f("merge", "out0/instances.jsonl", "out1/instances.jsonl", "--out", "all.json").exit_code == 0
    assert len(COCO("all.json").imgs) == 6
    assert len(list(Path().glob("out?/*_overlay.png"))) == 6
