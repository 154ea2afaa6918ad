"""What a server leaves: removed when its owner ended without cleaning up, and never while somebody owns it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from until import until

from m2f_server import remains
from m2f_server.guard import ServerGuard

SHARED_MEMORY = Path("/dev/shm")
OWNER = """
import sys
from m2f_server import remains
claimed = remains.claim()
print(claimed.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A temporary folder of this test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def owner(temporary):
    """Start a process that claims a name, as `m2f serve` does; returns the process and the name."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def orphan():
    """Start a process of a server that outlives its owner, in a session of its own."""
    started = []

    def start(name):
        environment = {**os.environ, remains.NAME_VARIABLE: name}
        started.append(subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def everything(name, temporary):
    """All that a server of this name has on the disk."""
    return [*SHARED_MEMORY.glob(f"{name}*"), *temporary.glob(f"{name}*")]


def kill(process):
    process.kill()
    process.wait()


def test_what_a_dead_server_left_is_removed(owner, orphan, temporary):
    process, name = owner()
    (temporary / name / "backends").mkdir()
    (SHARED_MEMORY / f"{name}-segment").write_text("")
    left = orphan(name)
    other = orphan("m2f-0123456789ab")
    kill(process)
    assert name in remains.sweep_dead()
    assert left.wait(10) == -signal.SIGKILL
    assert other.poll() is None
    assert everything(name, temporary) == []
    assert name not in remains.sweep_dead()


def test_what_a_living_server_has_is_left_alone(owner, orphan, temporary):
    _, name = owner()
    part = orphan(name)
    before = everything(name, temporary)
    assert len(before) == 2
    assert name not in remains.sweep_dead()
    assert everything(name, temporary) == before
    assert part.poll() is None


def test_a_folder_that_no_lock_was_ever_written_for_is_left_alone(temporary):
    """An older m2f locked nothing, and a server that starts now has not locked its folder yet."""
    (temporary / "m2f-0123456789ab").mkdir()
    (temporary / "m2f-notes").mkdir()
    (temporary / "m2f-notes" / remains.OWNER_FILE).write_text("m2f-notes")
    remains.sweep_dead()
    assert sorted(path.name for path in temporary.iterdir()) == ["m2f-0123456789ab", "m2f-notes"]


def test_each_place_tells_of_its_own_whether_the_server_is_dead(owner, temporary, monkeypatch):
    """The temporary folder may have been another one, or /dev/shm may be another container's."""
    process, name = owner()
    kill(process)
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    assert name in remains.sweep_dead()
    assert everything(name, temporary) == []
    process, name = owner()
    kill(process)
    (SHARED_MEMORY / f"{name}-lock").unlink()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert name in remains.sweep_dead()
    assert everything(name, temporary) == []


def test_two_that_sweep_at_once_do_not_disturb_those_that_start(temporary):
    """Names are claimed and swept in a rush; whoever owns a name keeps all of it."""
    sweeper = f"import tempfile; tempfile.tempdir = {str(temporary)!r}\nfrom m2f_server import remains\n"
    sweeper += "print(flush=True)\nwhile True: remains.sweep_dead()"
    sweepers = [subprocess.Popen([sys.executable, "-c", sweeper], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in sweepers:
            process.stdout.readline()
        for _ in range(100):
            claimed = remains.claim()
            assert len(everything(claimed.name, temporary)) == 2
            assert (claimed.work_dir / remains.OWNER_FILE).read_text() == claimed.name
            claimed.release()
            remains.sweep(claimed.name, claimed.work_dir)
    finally:
        for process in sweepers:
            process.kill()
            process.communicate()


def test_the_copies_of_candidates_are_removed_by_their_owner_alone(monkeypatch, temporary):
    monkeypatch.setattr(remains, "_OF_TRITON", temporary)
    for folder, owner in (("folderAAAAAA", "m2f-aaaaaaaaaaaa-1"), ("folderBBBBBB", "m2f-bbbbbbbbbbbb-1")):
        (temporary / folder / "1").mkdir(parents=True)
        (temporary / folder / remains.OWNER_FILE).write_text(owner)
    (temporary / "folderCCCCCC").mkdir()
    remains.sweep("m2f-aaaaaaaaaaaa", temporary / "m2f-aaaaaaaaaaaa")
    assert sorted(path.name for path in temporary.iterdir()) == ["folderBBBBBB", "folderCCCCCC"]


@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGSTOP], []])
def test_a_guard_cleans_up_even_if_its_process_was_lost(orphan, temporary, signals):
    guard = ServerGuard()
    part = orphan(guard.name)
    for number in signals:
        for pid in guards(guard.name):
            os.kill(pid, number)
    guard.clean_up()
    assert part.wait(10) == -signal.SIGKILL
    assert everything(guard.name, temporary) == []
    assert guards(guard.name) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_guard_is_replaced(number):
    guard = ServerGuard()
    try:
        (before,) = until(lambda: guards(guard.name))
        assert not guard.renew()
        os.kill(before, number)
        until(guard.renew)
        (after,) = until(lambda: guards(guard.name))
        assert after != before
        assert not guard.renew()
    finally:
        guard.clean_up()


def test_a_guard_survives_stop_signals(temporary):
    """systemd sends SIGTERM to every process of a service."""
    guard = ServerGuard()
    (pid,) = until(lambda: guards(guard.name))
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    until(lambda: all(ignored(pid) >> (number - 1) & 1 for number in numbers))
    for number in numbers:
        os.kill(pid, number)
    assert not guard.renew()
    guard.clean_up()
    assert everything(guard.name, temporary) == []


def test_to_clean_up_never_raises(monkeypatch):
    """Whatever is missing, already gone or not allowed."""

    def refuse(*_, **__):
        raise PermissionError(13, "not allowed")

    for broken in ("everything is gone", "nothing is allowed"):
        guard = ServerGuard()
        (pid,) = until(lambda guard=guard: guards(guard.name))
        os.kill(pid, signal.SIGKILL)
        with monkeypatch.context() as patch:
            if broken == "everything is gone":
                remains.sweep(guard.name, guard.work_dir)
            else:
                for name in ("kill", "open", "scandir", "listdir", "unlink", "rmdir"):
                    patch.setattr(os, name, refuse)
            guard.clean_up()
        remains.sweep(guard.name, guard.work_dir)


def ignored(pid):
    """The signals that a process ignores, as a bit mask."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))


def guards(name):
    """The guarding processes of a server."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if remains.__file__.encode() in words and name.encode() in words:
            found.append(int(path.parent.name))
    return found
