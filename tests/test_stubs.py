"""The processes of Python models as the supervisor sees them: those that have ended, and those that took over."""

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from m2f_server.stubs import Stubs


@pytest.fixture
def start(tmp_path):
    """A function that starts a process with a stub's command line, for an instance of the model `worker`."""
    script = tmp_path / "worker" / "1" / "model.py"
    script.parent.mkdir(parents=True)
    script.write_text("read _")  # for the shell: until its input is closed
    processes = []

    def start(instance):
        time.sleep(0.02)  # the kernel counts start times in steps of 0.01 s
        command = ["triton_python_backend_stub", script, *"234567", instance]
        processes.append(subprocess.Popen(command, executable="/bin/sh", stdin=subprocess.PIPE))
        return processes[-1]

    yield start
    for process in processes:
        process.stdin.close()
        process.wait()


@pytest.mark.parametrize("killed", [0, 1])
def test_an_instance_is_lost_until_another_process_takes_its_place(start, killed):
    """A process of the other instance does not take it, older or younger."""
    processes = [start(f"worker_0_{number}") for number in range(2)]
    stubs = Stubs(os.getpid())
    assert [stub.instance for stub in stubs.of("worker")] == ["worker_0_0", "worker_0_1"]
    assert not stubs.lost()
    processes[killed].kill()
    os.waitid(os.P_PID, processes[killed].pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    for _ in range(2):
        assert {stub.pid: why for stub, why in stubs.lost().items()} == {processes[killed].pid: "killed by SIGKILL"}
    start(f"worker_0_{killed}")
    assert not stubs.lost()
    assert len(stubs.of("worker")) == 2


@pytest.mark.parametrize("hours", [-1, 1])
def test_somebody_sets_the_clock_then_an_instance_is_replaced(start, monkeypatch, hours):
    """psutil tells starts by the clock of the day: what replaced the stub would seem older, or the stub a new one."""
    first = start("worker_0_0")
    stubs = Stubs(os.getpid())
    assert len(stubs.of("worker")) == 1
    booted = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: booted + 3600 * hours)
    monkeypatch.setattr(psutil._psplatform, "BOOT_TIME", booted + 3600 * hours, raising=False)
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    assert len(stubs.lost()) == 1
    start("worker_0_0")
    for _ in range(3):
        assert not stubs.lost()
    assert len(stubs.of("worker")) == 1


def test_a_table_that_cannot_be_read_is_no_lost_stub(start, monkeypatch):
    start("worker_0_0")
    stubs = Stubs(os.getpid())

    def none_left(self, *_):
        raise OSError(24, "Too many open files", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", none_left)
        with pytest.raises(OSError, match="Too many"):
            stubs.lost()
    assert not stubs.lost()
    assert len(stubs.of("worker")) == 1
