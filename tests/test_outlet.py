"""Outlets for lines: what is read late, never, or cannot be written makes nobody wait."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from log_lines import parse

from m2f_server.outlet import DROPPED, LogFile, Outlet, event_line

LINES = [b"%07d %s\n" % (number, 991 * b"x") for number in range(2_000)]  # 2 MB
KEPT = {"least": 1_000, "most": 1_600}  # of them: a MiB, and what a pipe holds


class Pipe:
    """A pipe as a target.

    Attributes:
        reader: file to read from.
        closed: set when the outlet has closed its end.
    """

    def __init__(self):
        reader, self._writer = os.pipe()
        self.reader = os.fdopen(reader, "rb")
        self.closed = threading.Event()

    def fileno(self):
        return self._writer

    def close(self):
        os.close(self._writer)
        self.closed.set()


def put(outlet, lines):
    for line in lines:
        outlet.put(line)


def dropped():
    """The metric."""
    (metric,) = DROPPED.collect()
    return metric.samples[0].value


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lines_that_nobody_reads_are_dropped_and_counted_when_somebody_does():
    before = dropped()
    pipe = Pipe()
    outlet = Outlet(pipe)
    put(outlet, LINES)  # returns at once: nobody reads
    assert dropped() - before > len(LINES) - KEPT["most"]
    outlet.flush(0)
    kept = []
    while not (line := pipe.reader.readline()).startswith(b"time="):
        kept.append(line)
    assert kept == LINES[: len(kept)]
    assert KEPT["least"] < len(kept) < KEPT["most"]
    notice = parse(line.decode())
    assert (notice["event"], int(notice["lines"])) == ("log_lines_dropped", len(LINES) - len(kept))
    put(outlet, LINES[:3])
    assert [pipe.reader.readline() for _ in range(3)] == LINES[:3]
    outlet.close(20)
    assert pipe.reader.read() == b""


def test_an_outlet_that_nobody_reads_can_be_closed():
    pipe = Pipe()
    outlet = Outlet(pipe)
    put(outlet, LINES)
    outlet.close(0)
    assert pipe.closed.wait(20)
    outlet.put(b"late\n")
    assert not pipe.reader.read().endswith(b"late\n")


def test_a_reader_that_is_gone_is_no_obstacle():
    pipe = Pipe()
    outlet = Outlet(pipe)
    pipe.reader.close()
    put(outlet, LINES[:100])
    outlet.flush(20)
    outlet.close(20)
    assert pipe.closed.wait(20)


def test_a_long_line_is_written_whole():
    pipe = Pipe()
    outlet = Outlet(pipe)
    line = 2_000_000 * b"y" + b"\n"
    outlet.put(line)
    assert pipe.reader.readline() == line
    outlet.close(20)


def test_a_log_file_is_appended_to_and_follows_a_rotation(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"older\n")
    outlet = Outlet(LogFile(path))
    outlet.put(b"one\n")
    outlet.flush(20)
    path.rename(tmp_path / "log.1")
    outlet.put(b"two\n")
    outlet.flush(20)
    path.unlink()
    outlet.put(b"three\n")
    outlet.flush(20)
    assert (tmp_path / "log.1").read_bytes() == b"older\none\n"
    assert path.read_bytes() == b"three\n"
    path.write_bytes(b"")  # as logrotate's copytruncate
    outlet.put(b"four\n")
    outlet.close(20)
    assert path.read_bytes() == b"four\n"


def test_lines_that_a_full_disk_does_not_take_are_counted(tmp_path):
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    outlet = Outlet(LogFile(path))
    put(outlet, LINES[:7])
    outlet.flush(20)
    path.unlink()  # the disk has room again
    put(outlet, LINES[7:9])
    outlet.flush(20)
    outlet.close(20)
    until(lambda: path.read_bytes().count(b"\n") == 3)
    *written, notice = path.read_bytes().splitlines(keepends=True)
    assert sorted([*written, notice])[:2] == LINES[7:9]
    assert "event=log_lines_dropped lines=7" in path.read_text()


def test_a_folder_that_is_gone_is_no_obstacle(tmp_path):
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "log"
    outlet = Outlet(LogFile(path))
    path.unlink()
    path.parent.rmdir()
    put(outlet, LINES[:7])
    outlet.flush(20)
    path.parent.mkdir()
    outlet.put(LINES[7])
    outlet.close(20)
    assert LINES[7].decode() in path.read_text()


def test_a_fifo_that_nobody_reads_opens_at_once(tmp_path):
    os.mkfifo(tmp_path / "log")
    outlet = Outlet(LogFile(tmp_path / "log"))
    put(outlet, LINES)
    outlet.put(b"")
    with (tmp_path / "log").open("rb") as reader:
        assert reader.readline() == LINES[0]
    outlet.close(0)


def test_a_file_may_be_limited(tmp_path):
    outlet = Outlet(LogFile(tmp_path / "log", max_bytes=1000))
    put(outlet, LINES[:100])
    outlet.close(20)
    assert (tmp_path / "log").stat().st_size <= 1000 + len(LINES[0])
    assert (tmp_path / "log").read_bytes().endswith(LINES[99])


@pytest.mark.parametrize("path", ["no/log", "."])
def test_a_log_file_that_cannot_be_opened(tmp_path, path):
    with pytest.raises(OSError, match=r"No such file|Is a directory"):
        LogFile(tmp_path / path)


def test_an_event_line():
    fields = parse(event_line("server_ended", why='two\nlines "quoted"', nothing="").rstrip("\n"))
    assert list(fields) == ["time", "event", "why"]
    assert fields["why"] == 'two\nlines "quoted"'


PROGRAM = """
import sys, threading, warnings
from m2f_server.outlet import never_wait_for_a_reader
never_wait_for_a_reader()
for _ in range(2_000):
    print("out", 990 * "x")
    print("err", 990 * "x", file=sys.stderr)
threading.Thread(target=lambda: 1 / 0).start()
warnings.warn(90 * "x")
open("done", "w").close()
1 / 0
"""


def test_a_process_whose_output_nobody_reads_ends(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.wait(60) == 1
    assert (tmp_path / "done").exists()
    assert process.stdout.read(4) == b"out "
    assert process.stderr.read(4) == b"err "
    process.stdout.close()
    process.stderr.close()


CLOSED = """
import os, sys
from m2f_server.outlet import never_wait_for_a_reader
never_wait_for_a_reader()
file = open("first", "w")
print("out", flush=True)
print("err", file=sys.stderr)
os.write(2, b"a library's message")
file.close()
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed_are_not_given_to_another_file(tmp_path, closed):
    (tmp_path / "program.py").write_text(CLOSED)
    command = ["sh", "-c", f'"$0" program.py {closed}', sys.executable]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert Path(tmp_path / "first").read_text() == ""
    assert result.stdout == ("" if ">&-" in closed.split() else "out\n")
    assert (result.stderr == "") == ("2>&-" in closed.split())
