"""Long runs of `m2f predict` on a fake server: killed, stopped, resumed; in a process where that matters."""

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from PIL import Image
from pycocotools.coco import COCO

from m2f_cli.main import main
from m2f_client import Client, ServerUnavailable
from m2f_client.fake import FakeTransport, result_of, stacked
from m2f_client.predict.run import PredictOptions, run

COUNT = 200


class Server:
    """Finds a mask that depends on the image's last byte; can be slow, and unavailable after some requests."""

    def __init__(self):
        self.delay, self.life, self.released = 0.0, 0, threading.Event()

    def answer(self, request):
        self.released.wait(self.delay)
        if len(self.fake.requests) > self.life:
            raise ServerUnavailable("no server")
        data = request.inputs["image"][0, 0]
        masks = np.zeros((1, 4, 5))
        masks[0, 1:, 1 : 1 + data[-1] % 4] = 1
        return stacked([result_of(masks, scores=[0.5])])

    def set(self, delay, life):
        self.released.set()  # for the requests of a command that was killed
        self.delay, self.life, self.released = delay, life, threading.Event()
        self.fake.requests.clear()


server = Server()


@pytest.fixture(scope="module", autouse=True)
def _serving():
    with serving(server.answer) as server.fake:
        yield
        server.released.set()


def m2f(folder, *arguments, delay=0.0, life=10**9):
    """Run `m2f predict` in this process."""
    server.set(delay, life)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return CliRunner().invoke(main, ["predict", "--url", server.fake.url, *map(str, arguments)])
    finally:
        os.chdir(before)


def command(*arguments, delay=0.0, life=10**9):
    """Return the command line for a process."""
    server.set(delay, life)
    return [Path(sys.executable).with_name("m2f"), "predict", "--url", server.fake.url, *arguments]


def start(folder, *arguments, **options):
    return subprocess.Popen(
        command(*arguments, **options), cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
def folder(tmp_path):
    """Images that differ in their last byte only: the fake server does not decode them."""
    (tmp_path / "in").mkdir()
    for index in range(COUNT):
        (tmp_path / "in" / f"{index:03d}.png").write_bytes(bytes([index % 256]))
    return tmp_path


def names(path):
    return [json.loads(line)["file_name"] for line in path.read_text().splitlines()]


def wait_for(running, event):
    while not event():
        assert running.poll() is None, running.communicate()
        time.sleep(0.002)


def wait_for_lines(running, path, count):
    wait_for(running, lambda: path.exists() and path.read_bytes().count(b"\n") >= count)


EXPECTED = [f"in/{index:03d}.png" for index in range(COUNT)]


def test_a_killed_run_resumes(folder):
    """kill -9 three times; then every image is there exactly once, and each has its own result."""
    journal = folder / "run.jsonl"
    reported = []
    for lines in (40, 80, 140):
        running = start(folder, "in", "--jsonl", "run.jsonl", delay=0.002)
        wait_for_lines(running, journal, lines)
        running.send_signal(signal.SIGKILL)
        reported += re.findall(r"^(in/\d+\.png) ", running.communicate()[0], re.MULTILINE)
    done = m2f(folder, "in", "--jsonl", "run.jsonl")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"^m2f: \d+ images done already; resuming from run.jsonl", done.stderr)
    assert names(journal) == EXPECTED
    assert set(reported) <= set(EXPECTED)
    assert len(set(reported)) == len(reported)
    for line in map(json.loads, journal.read_text().splitlines()):
        assert line["instances"][0]["area"] == 3 * (int(line["file_name"][3:6]) % 256 % 4)
    before = journal.read_bytes()
    assert m2f(folder, "in", "--jsonl", "run.jsonl", life=0).exit_code == 0  # nothing is asked for again
    assert journal.read_bytes() == before


def test_what_was_reported_is_in_the_journal_after_a_kill(folder):
    running = start(folder, "in", "--jsonl", "run.jsonl", delay=0.002)
    reported = [running.stdout.readline() for _ in range(50)]
    running.kill()
    reported += running.communicate()[0].splitlines(keepends=True)
    whole = [line for line in (folder / "run.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = {json.loads(line)["file_name"] for line in whole}
    assert {line.split()[0] for line in reported if line.endswith("\n")} <= kept


def test_a_cut_line_and_failures_are_done_again(folder):
    journal = folder / "run.jsonl"
    (folder / "in" / "003.png").rename(folder / "in" / "hidden")
    sources = EXPECTED[:6]
    assert m2f(folder, *sources, "--jsonl", "run.jsonl").exit_code == 1
    assert names(journal) == sources
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    (folder / "in" / "hidden").rename(folder / "in" / "003.png")
    again = m2f(folder, *sources, "--jsonl", "run.jsonl")
    assert again.exit_code == 0
    assert "4 images done already" in again.stderr
    assert names(journal) == [sources[i] for i in (0, 1, 2, 4, 3, 5)]
    assert not list(folder.glob("*.part"))


def test_a_cut_line_alone(folder):
    journal = folder / "run.jsonl"
    assert m2f(folder, *EXPECTED[:3], "--jsonl", "run.jsonl").exit_code == 0
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    for left in (1, 15, 60, -1):
        journal.write_bytes(b"".join(lines[:2]) + lines[2][:left])
        assert m2f(folder, *EXPECTED[:3], "--jsonl", "run.jsonl").exit_code == 0
        assert journal.read_bytes() == whole


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 JPEG", b'{"a": 1}\n', b"notes\n", b"notes"])
def test_a_file_that_is_no_journal_is_left_alone(folder, content):
    (folder / "mine").write_bytes(content)
    ran = m2f(folder, EXPECTED[0], "--jsonl", "mine")
    assert ran.exit_code == 1
    assert "mine: line 1 was not written by m2f predict; choose another file" in ran.stderr
    assert (folder / "mine").read_bytes() == content


@pytest.mark.parametrize(("name", "kind"), [("/dev/null", "a device"), ("/dev/full", "a device"), ("pipe", "a pipe")])
def test_a_journal_is_a_file(folder, name, kind):
    os.mkfifo(folder / "pipe")
    ran = m2f(folder, EXPECTED[0], "--jsonl", name)
    assert ran.exit_code == 1
    assert ran.stderr == f"m2f: {name} is {kind}, and a run is resumed from a file; - prints the lines\n"


@pytest.mark.parametrize("other", [("--score-threshold", "0.6"), ("--score-threshold", "0.5", "--model", "parts")])
def test_other_settings_do_not_mix(folder, other):
    assert m2f(folder, EXPECTED[0], "--jsonl", "run.jsonl", "--score-threshold", "0.5").exit_code == 0
    before = (folder / "run.jsonl").read_bytes()
    ran = m2f(folder, *EXPECTED[:2], "--jsonl", "run.jsonl", *other)
    assert ran.exit_code == 1
    said = "run.jsonl comes from a run with other settings (model mask2former, score_threshold=0.5); repeat these"
    assert said in ran.stderr
    assert (folder / "run.jsonl").read_bytes() == before


def test_a_journal_of_the_time_before_models_had_names_is_resumed(folder):
    """There was one model then, and it has kept its name."""
    assert m2f(folder, EXPECTED[0], "--jsonl", "run.jsonl").exit_code == 0
    line = json.loads((folder / "run.jsonl").read_bytes())
    assert line.pop("model") == "mask2former"
    (folder / "run.jsonl").write_text(json.dumps(line) + "\n")
    assert "1 image done already" in m2f(folder, *EXPECTED[:2], "--jsonl", "run.jsonl").stderr
    assert "other settings" in m2f(folder, *EXPECTED[:2], "--jsonl", "run.jsonl", "--model", "parts").stderr


def test_two_runs_do_not_share_a_journal(folder):
    first = start(folder, "in", "--jsonl", "run.jsonl", delay=0.2)
    wait_for_lines(first, folder / "run.jsonl", 3)
    second = m2f(folder, "in", "--jsonl", "run.jsonl", delay=0.2)
    first.kill()
    first.communicate()
    assert second.exit_code == 1
    assert "run.jsonl is in use by another m2f predict" in second.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_what_is_in_flight(folder, number):
    journal = folder / "run.jsonl"
    running = start(folder, "in", "--jsonl", "run.jsonl", delay=0.05)
    wait_for_lines(running, journal, 8)
    running.send_signal(number)
    _, errors = running.communicate()
    assert running.returncode == 1
    count = len(names(journal))
    assert 8 <= count < COUNT // 2
    assert "finishing the requests in flight" in errors
    assert f"m2f: stopped; {count} images done, kept in run.jsonl: the same command resumes from there" in errors
    assert "Traceback" not in errors
    assert names(journal) == EXPECTED[:count]


def test_a_second_ctrl_c_ends_at_once(folder):
    with start(folder, "in", "--jsonl", "run.jsonl", delay=6) as running:
        wait_for(running, lambda: server.fake.requests)
        running.send_signal(signal.SIGINT)
        while "again" not in (line := running.stderr.readline()):
            assert line
        running.send_signal(signal.SIGINT)
        assert "Traceback" not in running.stderr.read()
        assert running.wait(10) == -signal.SIGINT


def test_a_lost_server_says_how_to_go_on(folder):
    """What was in flight when the server went is neither done nor failed, but for the first."""
    journal = folder / "run.jsonl"
    lost = m2f(folder, "in", "--jsonl", "run.jsonl", "--timeout", 5, life=20, delay=0.002)
    assert lost.exit_code == 1
    assert lost.stderr.count("no server; asking again, for up to 5 s without an answer") == 1
    assert len(re.findall(r"in/\d+.png: .*: no server", lost.stderr)) == 1
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    done = sum("instances" in line for line in lines)
    assert 13 <= done <= 20  # others are at most 7 ahead of the first that failed
    assert len(lines) == done + 1
    assert f"m2f: stopped; {done} images done, kept in run.jsonl: the same command resumes from there" in lost.stderr
    assert m2f(folder, "in", "--jsonl", "run.jsonl").exit_code == 0
    assert sorted(names(journal)) == EXPECTED


def picture(path, width, height):
    Image.new("RGB", (width, height), (width, height, 0)).save(path)


def test_out_resumes_and_makes_one_document(tmp_path):
    """A folder that was changed in between: no file of the first run is overwritten."""
    for name in ("b/a.png", "c/a.png"):
        (tmp_path / name).parent.mkdir()
        picture(tmp_path / name, 5, 4)
    assert m2f(tmp_path, "b", "c", "gone.png", "--out", "out").exit_code == 1
    made = (tmp_path / "out/a_overlay.png").read_bytes()
    (tmp_path / "a").mkdir()
    picture(tmp_path / "a/a.png", 5, 4)
    picture(tmp_path / "gone.png", 5, 4)
    ran = m2f(tmp_path, "a", "b", "c", "gone.png", "--out", "out")
    assert ran.exit_code == 0, ran.stderr
    assert "2 images done already; resuming from out/instances.jsonl" in ran.stderr
    assert (tmp_path / "out/a_overlay.png").read_bytes() == made
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a-2_overlay.png", "a-3_overlay.png", "a_overlay.png", "gone_overlay.png", "instances.json"
    ]  # fmt: skip
    truth = COCO(str(tmp_path / "out/instances.json"))
    found = [image["file_name"] for image in truth.imgs.values()]
    assert found == ["b/a.png", "c/a.png", "a/a.png", "gone.png"]
    assert [truth.annToMask(row).sum() == row["area"] for row in truth.anns.values()] == [True] * 4
    assert "done already" not in m2f(tmp_path, "b", "--out", "out").stderr  # a run that is done is not resumed


def test_lines_on_standard_output(folder):
    ran = m2f(folder, *EXPECTED[:3], "nope.png", "--jsonl", "-")
    assert ran.exit_code == 1
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line["file_name"] for line in lines] == [*EXPECTED[:3], "nope.png"]
    assert lines[3]["error"] == "No such file or directory"
    assert lines[0]["instances"] == [] or lines[0]["instances"][0]["category_id"] == 1


def test_many_images_get_a_line_each_and_no_escape_codes(folder):
    ran = m2f(folder, "in")
    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    assert lines[0] == "in/000.png  5x4  0 x1"
    assert len(lines) == COUNT
    assert "\x1b" not in ran.stdout + ran.stderr
    assert ran.stderr == ""


def test_a_name_that_is_not_utf_8(folder):
    name = os.fsencode(folder) + b"/in/\xff.png"
    with open(name, "wb") as file:  # noqa: PTH123 (bytes)
        file.write(b"x")
    ran = subprocess.run(
        [*map(os.fsencode, command("--jsonl", "run.jsonl")), b"in/\xff.png", b"no\xff.png"], cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1, ran.stderr
    assert "in/\ufffd.png  5x4" in ran.stdout
    assert "m2f: no\ufffd.png: No such file or directory" in ran.stderr
    assert names(folder / "run.jsonl") == ["in/\udcff.png", "no\udcff.png"]


def on_a_terminal(folder, *arguments, stdout=None, **options):
    """Run with standard error on a terminal, and output, unless it goes elsewhere; return what the terminal shows."""
    ours, theirs = pty.openpty()
    shown = io.BytesIO()

    def collect():
        try:
            while data := os.read(ours, 65536):
                shown.write(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=collect)
    reader.start()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    code = subprocess.call(
        command(*arguments, **options), cwd=folder, env=environment, stdout=stdout or theirs, stderr=theirs
    )
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    return code, shown.getvalue().decode()


def test_progress_on_a_terminal(folder):
    code, shown = on_a_terminal(folder, "in", "nope.png", delay=0.01)
    assert code == 1
    assert f"/{COUNT + 1}" in shown
    assert re.search(r"\d\.\d images/s", shown)
    assert "m2f: nope.png: No such file or directory" in shown
    assert all(f"{name}  5x4" in shown for name in EXPECTED)


def test_no_progress_where_json_is_printed(folder):
    code, shown = on_a_terminal(folder, "in", "--jsonl", "-", delay=0.002)
    assert code == 0
    assert "\x1b" not in shown
    assert len([json.loads(line) for line in shown.splitlines()]) == COUNT


def test_no_progress_beside_json_and_one_beside_lines(folder):
    """Standard output goes to a file, standard error to a terminal."""
    with (folder / "output").open("w") as output:
        assert on_a_terminal(folder, "in", "--json", stdout=output, delay=0.002) == (0, "")
    with (folder / "output").open("w") as output:
        _, shown = on_a_terminal(folder, "in", stdout=output, delay=0.01)
    assert "images/s" in shown
    lines = (folder / "output").read_text()
    assert "\x1b" not in lines
    assert lines.count("\n") == COUNT


def test_memory_is_flat(tmp_path, monkeypatch):
    """400 answers of 60 kB (24 MB), and the document of all: no more is held than after the first 100."""
    monkeypatch.chdir(tmp_path)
    names = [f"{index:04d}.png" for index in range(400)]
    for name in names:
        Path(name).write_bytes(b"x")
    early = []

    def answer(_):
        if len(transport.requests) == 100:
            early.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.reset_peak()
        transport.requests[:-1] = [None] * (len(transport.requests) - 1)
        found = stacked([result_of(np.ones((1, 4, 5)))])
        return {**found, "rle": np.array([[b"0" * 60_000]], object)}

    transport = FakeTransport(answer)
    tracemalloc.start()
    try:
        with Path("document.json").open("w") as document, contextlib.redirect_stdout(document):
            assert run(Client(transport=transport), PredictOptions(names, {}, as_json=True)) == 0
        assert tracemalloc.get_traced_memory()[1] - early[0] < 4e6
    finally:
        tracemalloc.stop()
    assert len(json.loads(Path("document.json").read_text())["annotations"]) == 400


def test_help_fits_a_terminal(folder):
    ran = m2f(folder, "--help")
    assert ran.exit_code == 0
    assert all(len(line) <= 80 for line in ran.stdout.splitlines())
    for option in ("--jsonl FILE", "--every N", "--concurrency N", "Exit code"):
        assert option in ran.stdout
