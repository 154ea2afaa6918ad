"""What surrounds a command, such as streams that are closed or full, and encodings: no traceback comes of it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from PIL import Image

from m2f_cli.main import LazyGroup, main
from m2f_client.fake import result_of, stacked

M2F = Path(sys.executable).with_name("m2f")


def shell(command, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [
        (">/dev/full", 1, "m2f: standard output: No space left on device\n"),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("| true", 0, ""),
    ],
)
def test_standard_output(redirect, code, said):
    ran = shell(f"{M2F} --version {redirect}")
    assert (ran.returncode, ran.stderr) == (code, said)


@pytest.fixture
def fake():
    with serving(lambda _: stacked([result_of(np.ones((1, 4, 5)))]), class_names='["катер"]') as fake:
        yield fake


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "ж.png")
    return str(tmp_path / "ж.png")


@pytest.mark.parametrize("charset", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_is_not_utf_8(fake, image, charset):
    ran = CliRunner(charset=charset).invoke(main, ["predict", image, "--url", fake.url])
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ("катер" if charset == "utf-8" else "?????") in ran.stdout


@pytest.mark.parametrize("options", [(), ("--json",), ("--jsonl", "-")])
def test_a_disk_that_is_full(fake, image, options):
    ran = shell(f"{M2F} predict '{image}' --url {fake.url} {' '.join(options)} >/dev/full")
    assert (ran.returncode, ran.stderr) == (1, "m2f: standard output: No space left on device\n")


def test_complaints_that_cannot_be_printed_do_not_stop_the_run(fake, image):
    ran = shell(f"{M2F} predict nowhere.png '{image}' --url {fake.url} 2>/dev/full")
    assert ran.returncode == 1
    assert "катер   0.900" in ran.stdout


def test_a_terminal_of_no_columns(fake, image, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    ran = CliRunner().invoke(main, ["predict", image, "--url", fake.url])
    assert "катер   0.900" in ran.stdout


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ran = CliRunner().invoke(main, ["predict", "."])
    assert (ran.exit_code, ran.stderr) == (1, "m2f: the working directory: No such file or directory\n")


def test_an_error_of_the_system_names_the_file():
    @click.group(cls=LazyGroup)
    def group():
        raise PermissionError(errno.EACCES, "Permission denied", "/etc/secret")

    ran = CliRunner().invoke(group, ["predict"])
    assert (ran.exit_code, ran.stderr) == (1, "m2f: /etc/secret: Permission denied\n")


def test_a_key_log_that_cannot_be_written(image):
    ran = CliRunner().invoke(
        main, ["predict", image, "--url", "https://127.0.0.1:1"], env={"SSLKEYLOGFILE": "/nowhere/keys"}
    )
    assert ran.exit_code == 2
    assert "the environment variable SSLKEYLOGFILE: [Errno 2] No such file or directory: '/nowhere/keys'" in ran.stderr
