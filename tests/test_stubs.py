"""The processes of Python models as the supervisor sees them: those that have ended, and those that took over."""

import os
import subprocess
import time

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
