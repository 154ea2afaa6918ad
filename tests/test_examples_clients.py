"""The examples in other clients, run as a user runs them, against what `m2f_client` finds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from m2f_client import Client

pytestmark = pytest.mark.server

CLIENTS = Path(__file__).parents[1] / "examples/clients"
PICTURE = sorted((CLIENTS.parent / "images").glob("scene_1*"))[0]


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program}")


@pytest.fixture(scope="module")
def found(server):
    """Score, label, box and area of each instance, as text."""
    with Client(f"http://{server.http_url}") as client:
        result = client.predict(PICTURE, score_threshold=0.6)
    rows = zip(result.scores, result.labels, result.boxes.tolist(), result.areas, strict=True)
    rows = [(f"{score:.3f}", int(label), box, int(area)) for score, label, box, area in rows]
    assert len(rows) > 3
    return rows


def run(*command):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=240, check=False)


def rows_of(output):
    """Read the lines that an example prints."""
    rows = []
    for line in output.splitlines():
        score, label, rest = line.split(" ", 2)
        box, area = rest.rsplit(" ", 1)
        rows.append((score, int(label), json.loads(box), int(area)))
    return rows


def test_tritonclient(server, found):
    done = run(sys.executable, CLIENTS / "tritonclient_grpc.py", PICTURE, server.grpc_url)
    assert done.returncode == 0, done.stderr
    assert rows_of(done.stdout) == found


@needs("node")
def test_fetch(server, found):
    done = run("node", CLIENTS / "fetch.mjs", PICTURE, f"http://{server.http_url}")
    assert done.returncode == 0, done.stderr
    assert rows_of(done.stdout) == found


@needs("go")
def test_go(server, found):
    done = run("go", "run", CLIENTS / "nethttp.go", PICTURE, f"http://{server.http_url}")
    assert done.returncode == 0, done.stderr
    assert rows_of(done.stdout) == found


@pytest.fixture(scope="module")
def cpp(tmp_path_factory):
    """The C++ example, compiled."""
    program = tmp_path_factory.mktemp("cpp") / "sockets"
    done = run("c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", program, CLIENTS / "sockets.cpp")
    assert done.returncode == 0, done.stderr
    return program


@needs("c++")
def test_cpp(server, found, cpp):
    done = run(cpp, PICTURE, *server.http_url.split(":"))
    assert done.returncode == 0, done.stderr
    assert rows_of(done.stdout) == found


@needs("c++")
def test_cpp_says_what_is_wrong(server, cpp, tmp_path):
    (tmp_path / "note.jpg").write_text("not a picture")
    host, port = server.http_url.split(":")
    for arguments, words in (
        ((tmp_path / "note.jpg", host, port), "allowed formats: JPEG, PNG, WebP"),
        ((tmp_path / "none.jpg", host, port), "cannot read"),
        ((PICTURE, host, "1"), "no server at"),
        ((PICTURE, host, port, "parts"), "unknown model: 'parts'"),
        ((), "usage"),
    ):
        done = run(cpp, *arguments)
        assert done.returncode == 1
        assert words in done.stderr


@needs("curl")
@pytest.mark.parametrize("program", ["curl.sh", "json.sh"])
def test_curl(server, found, program):
    done = run("sh", CLIENTS / program, PICTURE, f"http://{server.http_url}")
    assert done.returncode == 0, done.stderr
    got = {output["name"]: output["data"] for output in json.loads(done.stdout)["outputs"]}
    scores, labels, areas = (got[name] for name in ("scores", "labels", "areas"))
    boxes = [got["boxes"][i : i + 4] for i in range(0, len(got["boxes"]), 4)]
    assert [(f"{score:.3f}", *row) for score, *row in zip(scores, labels, boxes, areas, strict=True)] == found


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["sh", CLIENTS / "curl.sh"], marks=needs("curl")),
        pytest.param(["sh", CLIENTS / "json.sh"], marks=needs("curl")),
        pytest.param(["node", CLIENTS / "fetch.mjs"], marks=needs("node")),
        pytest.param(["go", "run", CLIENTS / "nethttp.go"], marks=needs("go")),
        [sys.executable, CLIENTS / "tritonclient_grpc.py"],
    ],
    ids=lambda command: Path(command[-1]).name,
)
def test_another_model_is_asked_for_by_its_name(server, command):
    address = server.grpc_url if command[0] == sys.executable else f"http://{server.http_url}"
    done = run(*command, PICTURE, address, "parts")
    assert done.returncode != 0
    assert "unknown model: 'parts'" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("curl.sh", marks=needs("curl")),
        pytest.param("json.sh", marks=needs("curl")),
        pytest.param("fetch.mjs", marks=needs("node")),
    ],
)
def test_what_is_no_picture_is_refused_in_words(server, program, tmp_path):
    (tmp_path / "note.jpg").write_text("not a picture")
    shell = "sh" if program.endswith("sh") else "node"
    done = run(shell, CLIENTS / program, tmp_path / "note.jpg", f"http://{server.http_url}")
    assert done.returncode != 0
    assert "allowed formats: JPEG, PNG, WebP" in done.stdout + done.stderr
