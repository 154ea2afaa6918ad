"""`m2f predict --tile` on a fake server: what it writes, what it asks again after a stop, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from blob_server import Crowd, answer, blob_transport, blobs, picture_of
from click.testing import CliRunner
from fake_server import serving
from PIL import Image

from m2f.rle import encode_mask
from m2f_cli.main import main
from m2f_client import Client, ServerError, ServerUnavailable
from m2f_client.predict.run import PredictOptions, run
from m2f_client.predict.screen import Screen
from m2f_client.tiled import Tiling

PICTURE = picture_of(90, 130, (3, 4, 12, 20), (35, 30, 48, 44), (100, 25, 110, 40), (60, 70, 75, 90), (90, 60, 104, 66))
SMALL = picture_of(30, 40, (3, 4, 12, 20))
TILE = ("--tile", "50", "--overlap", "0.4")
TILES = 12  # of PICTURE


class Server:
    """Answers with the blobs; may hold or refuse requests after some of them."""

    _gate = threading.Event()

    def __init__(self):
        self.reset()

    def reset(self, *, life=10**9, error=None):
        """Answer `life` requests; then raise `error`, or hold the rest until the next reset."""
        self._gate.set()
        self._gate, self._life, self._error, self._lock = threading.Event(), life, error, threading.Lock()
        self.answered = []

    def release(self):
        """Answer the requests that are held, and all others."""
        with self._lock:
            self._life = 10**9
        self._gate.set()

    def answer(self, request):
        with self._lock:
            self._life -= 1
            alive, gate, answered = self._life >= 0, self._gate, self.answered
        if not alive and self._error is not None:
            raise self._error
        if not alive:
            gate.wait()
        answered.append(request.inputs["image"].item())
        return answer(request)


server = Server()


@pytest.fixture(scope="module", autouse=True)
def _serving():
    with serving(server.answer) as server.fake:
        yield
        server.reset()


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "large.png")
    Image.fromarray(SMALL).save(tmp_path / "small.png")
    return tmp_path


def m2f(folder, *arguments, life=10**9, error=None, command="predict", url=None):
    server.reset(life=life, error=error)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return CliRunner().invoke(main, [command, *map(str, arguments), "--url", url or server.fake.url])
    finally:
        os.chdir(before)


def instances(folder):
    document = json.loads((folder / "out/instances.json").read_text())
    return {
        image["file_name"]: sorted(
            row["segmentation"]["counts"] for row in document["annotations"] if row["image_id"] == image["id"]
        )
        for image in document["images"]
    }


def expected(pixels):
    return sorted(encode_mask(mask).decode() for mask in blobs(pixels))


def test_files_and_folders(folder):
    done = m2f(folder, ".", "--out", "out", "--jsonl", "lines", *TILE)
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(server.answered) == TILES + 1
    assert (folder / "small.png").read_bytes() in server.answered  # as it is
    assert instances(folder) == {"large.png": expected(PICTURE), "small.png": expected(SMALL)}
    assert sorted(path.name for path in folder.iterdir()) == ["large.png", "lines", "out", "small.png"]
    lines = list(map(json.loads, (folder / "lines").read_text().splitlines()))
    assert {json.dumps(line["tiling"]) for line in lines} == {'{"tile": 50, "overlap": 0.4, "whole": false}'}
    assert Image.open(folder / "out/large_overlay.png").size == (130, 90)
    again = m2f(folder, ".", "--out", "out", "--jsonl", "lines", *TILE)
    assert (again.exit_code, server.answered) == (0, [])


def test_two_large_pictures_share_the_requests_in_flight(folder):
    Image.fromarray(PICTURE).save(folder / "other.png")
    crowd = Crowd(3, 2 * TILES)
    names = [str(folder / name) for name in ("large.png", "other.png")]
    options = PredictOptions(names, {}, jsonl=folder / "lines", tiling=Tiling(50, 0.4), concurrency=3)
    assert run(Client(transport=crowd), options) == 0
    assert (crowd.most, len(crowd.requests)) == (3, 2 * TILES)


def test_a_damaged_picture_is_named_once_and_the_others_are_done(folder):
    (folder / "broken.png").write_bytes((folder / "large.png").read_bytes()[:200])
    done = m2f(folder, "broken.png", "missing.png", "large.png", "--out", "out", *TILE)
    assert done.exit_code == 1
    damaged, missing, summary = done.stderr.splitlines()
    assert damaged.startswith("m2f: broken.png: the image is damaged: ")
    assert missing == "m2f: missing.png: No such file or directory"
    assert summary == "m2f: 2 images failed, 1 image done: the same command retries only the failed ones"
    assert instances(folder) == {"large.png": expected(PICTURE)}


@pytest.mark.parametrize(("silent", "said"), [(False, [2, 5]), (True, [])])
def test_a_log_has_a_line_about_tiles_each_minute(capsys, silent, said):
    now = [0.0]
    screen = Screen(1, None, silent=silent, tiled=True, clock=lambda: now[0])
    for done, now[0] in enumerate((59, 60, 61, 119, 120, 121), 1):
        screen.tiles("a.tif", done, 9)
    assert capsys.readouterr().err.splitlines() == [f"m2f: a.tif: {done} of 9 tiles done" for done in said]


def test_the_overlay_of_a_very_large_picture_is_reduced(folder, monkeypatch):
    monkeypatch.setattr("m2f_client.predict.tiling.DRAWN_PIXELS", 3000)
    done = m2f(folder, "large.png", "--out", "out", *TILE)
    assert "large_overlay.png (1/2 of the picture's sides)" in done.stdout
    drawn = np.asarray(Image.open(folder / "out/large_overlay.png")).astype(int)
    assert drawn.shape == (45, 65, 3)
    near = np.asarray(Image.fromarray(PICTURE).reduce(2)).astype(int)
    assert np.abs(drawn - near).sum(-1)[(blobs(PICTURE).any(0)[::2, ::2]) & (near.min(-1) > 100)].min() > 0
    assert instances(folder) == {"large.png": expected(PICTURE)}


def start(folder, *arguments, life):
    server.reset(life=life)
    command = [Path(sys.executable).with_name("m2f"), "predict", "--url", server.fake.url, *arguments]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_tiles(running, folder, count):
    """Wait until so many tiles are kept."""
    while sum(len(path.read_bytes().splitlines()) - 1 for path in folder.glob("lines.tiles/*")) < count:
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("stop", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 1)], ids=["killed", "stopped"]
)
def test_a_run_resumes_by_tile(folder, stop, code):
    arguments = ("large.png", "--jsonl", "lines", *TILE, "--concurrency", "3", "--timeout", "60")
    running = start(folder, *arguments, life=5)
    wait_for_tiles(running, folder, 5)
    answered = server.answered
    running.send_signal(stop)
    if stop == signal.SIGINT:
        assert "finishing the requests in flight" in running.stderr.readline() + running.stderr.readline()
        server.release()
        _, said = running.communicate(timeout=240)
        assert "stopped; 0 images done, kept in lines: the same command resumes from there" in said
        assert 5 < len(answered) < TILES
    assert running.wait(240) == code
    kept = list(answered)
    after = m2f(folder, *arguments)
    assert after.exit_code == 0, after.output
    assert f"large.png: {len(kept)} of 12 tiles done already" in after.stderr
    assert not set(kept) & set(server.answered)
    assert len(kept) + len(server.answered) == TILES
    m2f(folder, "large.png", "--jsonl", "at-once", *TILE)
    assert (folder / "lines").read_text() == (folder / "at-once").read_text()
    assert not (folder / "lines.tiles").exists()


def test_a_failed_tile_is_named_and_asked_again_alone(folder):
    arguments = ("large.png", "small.png", "--jsonl", "lines", *TILE, "--concurrency", "1")
    failed = m2f(folder, *arguments, life=4, error=ServerError("out of memory"))
    assert failed.exit_code == 1
    assert "large.png: tile 5 of 12 (x 0 to 50, y 20 to 70): out of memory" in failed.stderr
    after = m2f(folder, *arguments)
    assert after.exit_code == 0
    assert len(server.answered) == TILES - 4 + 1


def test_a_server_that_goes_in_the_middle_loses_nothing(folder, capsys):
    def predict(life):
        """Run with a server that goes away after some tiles; return what it answered."""
        answered = []

        def go_away(request):
            if len(answered) >= life:
                raise ServerUnavailable("shutting down")
            answered.append(request.inputs["image"].item())

        client = Client(transport=blob_transport(go_away))
        names = [str(folder / name) for name in ("large.png", "small.png")]
        options = PredictOptions(names, {}, jsonl=folder / "lines", tiling=Tiling(50, 0.4), timeout=0.1)
        return run(client, options), answered

    code, before = predict(7)
    assert code == 1
    assert "shutting down; asking again" in (said := capsys.readouterr().err)
    assert "the same command resumes from there" in said
    code, after = predict(10**9)
    assert code == 0
    assert set(Counter([*before, *after]).values()) == {1}
    assert len([*before, *after]) == TILES + 1


def test_a_wrong_answer_is_not_kept(folder):
    arguments = ("large.png", "--jsonl", "lines", *TILE, "--concurrency", "1")

    def damaged(request):
        rows = answer(request)
        return rows | {"rle": np.full_like(rows["rle"], b"no")}

    with serving(damaged) as broken:
        refused = m2f(folder, *arguments, url=broken.url)
    assert refused.exit_code == 1
    assert "a mask from the server cannot be decoded" in refused.stderr
    after = m2f(folder, *arguments)
    assert (after.exit_code, len(server.answered)) == (0, TILES)


@pytest.mark.parametrize("damage", [b"", b'{"tile": 3, "scor', b"\0" * 40, b'{"tile": 1}\n', b"[]\n", b'{"tile": "x"'])
def test_kept_tiles_are_read_up_to_the_first_damaged_line(folder, damage):
    arguments = ("large.png", "--jsonl", "lines", *TILE, "--concurrency", "1")
    m2f(folder, *arguments, life=5, error=ServerError("out of memory"))
    (kept,) = folder.glob("lines.tiles/*")
    whole = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(whole[:3]) + damage)
    m2f(folder, *arguments, life=3, error=ServerError("out of memory"))
    after = m2f(folder, *arguments)
    assert "5 of 12 tiles done already" in after.stderr
    assert (after.exit_code, len(server.answered)) == (0, TILES - 5)


def test_other_settings_are_refused_and_another_picture_starts_again(folder):
    arguments = ("large.png", "--jsonl", "lines", "--concurrency", "1")
    m2f(folder, *arguments, *TILE, life=5, error=ServerError("out of memory"))
    for settings in (("--tile", "60"), (*TILE, "--whole"), (*TILE, "--score-threshold", "0.1")):
        refused = m2f(folder, *arguments, *settings)
        assert (refused.exit_code, server.answered) == (1, [])
        assert "has tiles of a run with other settings" in refused.stderr
        assert 'tiling {"tile": 50, "overlap": 0.4, "whole": false}' in refused.stderr
    Image.fromarray(PICTURE.transpose(1, 0, 2)).save(folder / "large.png")
    os.utime(folder / "large.png", ns=(1, 1))
    after = m2f(folder, *arguments, *TILE)
    assert after.stderr == "m2f: large.png: the picture has changed since its tiles were kept; it starts again\n"
    assert (after.exit_code, len(server.answered)) == (0, TILES)


def test_a_journal_of_other_tiles_is_refused(folder):
    m2f(folder, "small.png", "--jsonl", "lines", *TILE)
    for settings in ((), ("--tile", "60"), (*TILE, "--whole")):
        refused = m2f(folder, "small.png", "large.png", "--jsonl", "lines", *settings)
        assert (refused.exit_code, server.answered) == (1, [])
        assert "lines comes from a run with other settings (model mask2former, tile=50, overlap=0.4" in refused.stderr


def test_shards_in_tiles_are_merged_and_must_be_cut_alike(folder):
    for index, settings in enumerate([TILE, (*TILE, "--whole")]):
        m2f(folder, "large.png", "small.png", "--jsonl", f"lines-{index}", "--shard", f"{index}/2", *settings)
    merged = CliRunner().invoke(main, ["merge", *map(str, folder.glob("lines-?")), "--out", str(folder / "all")])
    assert merged.exit_code == 1
    assert "come from runs that cut pictures differently ({'tile': 50" in merged.stderr
    (folder / "lines-1").unlink()
    m2f(folder, "large.png", "small.png", "--jsonl", "lines-1", "--shard", "1/2", *TILE)
    merged = CliRunner().invoke(main, ["merge", *map(str, folder.glob("lines-?")), "--out", str(folder / "all")])
    assert merged.exit_code == 0, merged.stderr
    assert len(json.loads((folder / "all").read_text())["annotations"]) == len(blobs(PICTURE)) + len(blobs(SMALL))


def test_an_area_of_ten_billion_pixels_is_resumed(folder):
    """A picture of 100,000 x 100,000 pixels, as a run in tiles writes it."""
    m2f(folder, "small.png", "--jsonl", "lines", *TILE)
    line = json.loads((folder / "lines").read_text())
    line |= {"width": 100_000, "height": 100_000}
    line["instances"][0] |= {"area": 10**10, "bbox": [0.0, 0.0, 1e5, 1e5]}
    (folder / "lines").write_text(json.dumps(line) + "\n")
    again = m2f(folder, "small.png", "--jsonl", "lines", *TILE, "--json")
    assert (again.exit_code, server.answered) == (0, [])
    assert json.loads(again.stdout)["annotations"][0]["area"] == 10**10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tile", "0"), "'--tile': 0 is not in the range x>=1"),
        (("--tile", "50", "--overlap", "1"), "overlap must be a part of the tile's side, 0 to less than 1; got 1.0"),
        (("--overlap", "0.3"), "--overlap needs --tile N"),
        (("--whole",), "--whole needs --tile N"),
        (("--tile", "50", "--out", "out", "--raw"), "--raw is not available with --tile"),
        (("--tile", "50", "--out", "out", "--panoptic"), "--panoptic is not available with --tile"),
    ],
)
def test_wrong_usage(folder, arguments, message):
    refused = m2f(folder, "large.png", *arguments)
    assert (refused.exit_code, server.answered) == (2, [])
    assert message in refused.stderr
