"""The log of a server: all of it is taken, the end is kept, and outlets get whole lines."""

import subprocess
import sys

from m2f_server.outlet import LogFile, Outlet
from m2f_server.server_log import ServerLog


def logged(tmp_path, program):
    """A process that runs a program, and its log."""
    process = subprocess.Popen(
        [sys.executable, "-uc", f"import os, sys, time\n{program}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    return process, ServerLog(process, file=Outlet(LogFile(tmp_path / "log")))


def test_the_last_words_of_a_server_that_has_ended(tmp_path):
    process, log = logged(tmp_path, "os.write(1, 60_000 * b'x' + b'\\nlast words'); os._exit(3)")
    process.wait(60)
    assert log.read().endswith("x\nlast words")
    log.close()
    assert (tmp_path / "log").read_text().endswith("x\nlast words\n")
    assert log.read().endswith("x\nlast words")


def test_a_log_is_read_while_it_is_written(tmp_path):
    process, log = logged(tmp_path, "print('one'); sys.stdin.readline(); print('two')")
    while log.read() != "one\n":
        assert process.poll() is None
    process.stdin.close()
    process.wait(60)
    assert log.read() == "one\ntwo\n"
    log.close()


def test_the_end_of_a_long_log_is_kept_and_all_of_it_is_passed_on(tmp_path):
    process, log = logged(tmp_path, "for n in range(4_000): os.write(1, b'%0999d\\n' % n)")
    process.wait(60)
    kept = log.read()
    assert len(kept) == 1 << 20
    assert kept.endswith("3999\n")
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [int(line) for line in lines if line.isdecimal()][:1000] == list(range(1000))


def test_a_line_without_an_end_is_passed_on_in_parts(tmp_path):
    process, log = logged(tmp_path, "os.write(1, 300_000 * b'x'); sys.stdin.readline()")
    while not (tmp_path / "log").stat().st_size:
        assert process.poll() is None
    process.stdin.close()
    process.wait(60)
    log.close()
    assert (tmp_path / "log").read_text().count("x") == 300_000
