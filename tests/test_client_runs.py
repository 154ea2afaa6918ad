"""Long runs of `m2f predict` against the real server: killed, a server lost and found again, memory.

The short forms are in `make test-more`, the long ones in `make chaos`.
"""

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from pycocotools.coco import COCO

from m2f_client import Client
from m2f_server import serve

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[1]
M2F = Path(sys.prefix) / "bin/m2f"
PARAMETERS = {"score_threshold": 0.0, "keep_top_k": 3}  # instances in any picture
OPTIONS = ("--score-threshold", "0", "--parameter", "keep_top_k=3")
LONG = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def folder_of(path, count):
    """`count` pictures, no two alike."""
    path.mkdir()
    for index in range(count):
        (path / f"{index:05d}.png").write_bytes(picture(64 + index % 97, 64 + index // 97, seed=index))
    return path


def start(folder, url, *options):
    command = [M2F, "predict", "in", "--url", url, *OPTIONS, *map(str, options)]
    with (folder / "said").open("a") as said:  # a pipe that nobody reads would stop the run when it is full
        return subprocess.Popen(command, cwd=folder, text=True, stdout=said, stderr=subprocess.PIPE)


def finish(running):
    _, errors = running.communicate(timeout=1200)
    assert running.returncode == 0, errors[-2000:]


def lines_in(journal):
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for_lines(running, journal, count):
    end = time.monotonic() + 900
    while lines_in(journal) < count:
        assert running.poll() is None, running.communicate()[1][-2000:]
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.005)


@contextlib.contextmanager
def held_at(running, journal, count):
    """Until the block ends, the run gets no further than about `count` lines, however fast the machine is."""

    def hold():
        wait_for_lines(running, journal, count)
        running.send_signal(signal.SIGSTOP)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        running.send_signal(signal.SIGCONT)


def check(lines, folder, url):
    """Each image is there once, with what a client of its own gets for it."""
    names = sorted(str(path.relative_to(folder)) for path in (folder / "in").iterdir())
    assert sorted(line["file_name"] for line in lines) == names
    with Client(url) as client:
        for line in lines:
            result = client.predict(folder / line["file_name"], **PARAMETERS)
            assert [one["score"] for one in line["instances"]] == [one["score"] for one in result.to_coco(1)]
            assert (line["height"], line["width"]) == result.size


@pytest.mark.parametrize(
    ("count", "options"),
    [
        pytest.param(60, ("--jsonl", "run.jsonl"), marks=pytest.mark.more),
        pytest.param(500, ("--jsonl", "run.jsonl"), marks=LONG),
        pytest.param(500, ("--out", "out"), marks=LONG),
    ],
)
def test_kill_9_and_again(server, tmp_path, count, options):
    """Three times; then every image is there once, and what was said to be done was not done again."""
    url, journal = f"grpc://{server.grpc_url}", tmp_path / "run.jsonl"
    if options[0] == "--out":
        journal = tmp_path / "out/instances.jsonl"
    folder_of(tmp_path / "in", count)
    for share in (0.2, 0.4, 0.7):
        running = start(tmp_path, url, *options)
        wait_for_lines(running, journal, share * count)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    finish(start(tmp_path, url, *options))
    said = re.findall(r"^(in/\d+\.png)  ", (tmp_path / "said").read_text(), re.MULTILINE)
    assert 0 < len(said) == len(set(said))
    if options[0] == "--jsonl":
        check([json.loads(line) for line in journal.read_text().splitlines()], tmp_path, url)
        return
    truth = COCO(str(tmp_path / "out/instances.json"))
    assert sorted(image["file_name"] for image in truth.imgs.values()) == sorted(
        str(path.relative_to(tmp_path)) for path in (tmp_path / "in").iterdir()
    )
    assert all(truth.annToMask(row).sum() == row["area"] for row in truth.anns.values())
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) == count
    assert all(Image.open(io.BytesIO(path.read_bytes())).load() for path in (tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("scheme", "count"),
    [
        pytest.param("grpc", 80, marks=pytest.mark.more),
        pytest.param("grpc", 500, marks=LONG),
        pytest.param("http", 500, marks=LONG),
    ],
)
def test_a_server_that_stops_and_starts(server, tmp_path, scheme, count):
    """With two addresses no image is lost, though one server goes in the middle and comes back."""
    addresses = {"http": "http_url", "grpc": "grpc_url"}
    options = {"model_repository": ROOT / "model_repository", "config_name": "cpu"}
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    journal, own = tmp_path / "run.jsonl", getattr(server, addresses[scheme])
    folder_of(tmp_path / "in", count)
    with contextlib.ExitStack() as going:
        other = going.enter_context(serve(**options, **ports))
        ports = {f"{name}_port": port for name, port in other.ports.items()}
        url = f"{scheme}://{getattr(other, addresses[scheme])},{own}"
        with start(tmp_path, url, "--jsonl", journal) as running:
            wait_for_lines(running, journal, count * 0.2)
            with held_at(running, journal, count * 0.5):
                going.close()
                done = lines_in(journal)
            assert done < count  # it went in the middle
            with serve(**options, **ports):
                finish(running)
    check([json.loads(line) for line in journal.read_text().splitlines()], tmp_path, f"{scheme}://{own}")


@pytest.mark.parametrize("count", [pytest.param(5000, marks=LONG)])
def test_memory_over_many_images(server, tmp_path, count):
    """Flat after the first tenth: less than 1 MB more for 1,000 images."""
    journal, samples = tmp_path / "run.jsonl", []
    folder_of(tmp_path / "in", count)
    running = start(tmp_path, f"grpc://{server.grpc_url}", "--jsonl", journal)
    for step in range(count // 10, count, count // 50):
        wait_for_lines(running, journal, step)
        samples.append((lines_in(journal), resident_mb(running.pid)))
    finish(running)
    images, resident = np.array(samples).T
    slope = np.polyfit(images / 1000, resident, 1)[0]
    print(f"\n{resident.min():.1f} to {resident.max():.1f} MB resident, {slope:+.3f} MB for 1,000 images")
    assert slope < 1


def resident_mb(pid):
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) / 1024
