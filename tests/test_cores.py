"""How many cores a process may use, by affinity and by quotas as kernels write them; engines that share them."""

import os
import subprocess
import sys

import pytest

from m2f_backend.cores import Neighbours, usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


@pytest.fixture
def machine(tmp_path):
    """Writes the files of /proc/self and of the control groups, and returns what `usable_cores` says."""

    def write(groups, mounts, files):
        proc = tmp_path / "proc"
        proc.mkdir()
        (proc / "cgroup").write_text("".join(f"{line}\n" for line in groups))
        (proc / "mountinfo").write_text("".join(f"{line.format(sys=tmp_path)}\n" for line in mounts))
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return usable_cores(proc)

    return write


V2 = "31 23 0:28 / {sys}/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 / {sys}/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "35 31 0:32 / {sys}/cgroup/memory rw,relatime - cgroup cgroup rw,memory"


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),  # whole cores only
        ("50000 100000", 1),
        ("9900000 100000", 8),  # more than there are
        ("", 8),
    ],
)
def test_a_quota_of_version_2(machine, quota, cores):
    assert machine(["0::/"], [V2], {"cgroup/cpu.max": quota}) == cores


def test_the_smallest_quota_of_the_groups_above_counts(machine):
    files = {
        "cgroup/cpu.max": "max 100000",
        "cgroup/pod/cpu.max": "300000 100000",
        "cgroup/pod/container/cpu.max": "600000 100000",
        "cgroup/other/cpu.max": "100000 100000",
    }
    assert machine(["0::/pod/container"], [V2], files) == 3


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("200000", 2), ("50000", 1)])
def test_a_quota_of_version_1(machine, quota, cores):
    files = {"cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": quota, "cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000"}
    assert machine(["9:memory:/b", "2:cpu,cpuacct:/a", "0::/"], [V1_MEMORY, V1], files) == cores


def test_a_container_that_sees_its_group_under_the_hosts_name(machine):
    mount = V1.replace(" / ", " /docker/1f ", 1)
    files = {"cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000", "cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000"}
    assert machine(["4:cpu,cpuacct:/docker/1f"], [mount], files) == 2


def test_a_group_that_the_mount_does_not_show(machine):
    mount = V1.replace(" / ", " /docker/1f ", 1)
    files = {"cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000", "cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000"}
    assert machine(["4:cpu,cpuacct:/"], [mount], files) == 3


def test_affinity_counts_where_there_are_no_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {2, 5})
    assert usable_cores(tmp_path) == 2


@pytest.fixture
def engines(tmp_path):
    """Two engines of a server, each with a file description of its own."""
    return Neighbours(tmp_path), Neighbours(tmp_path)


def ask(neighbours):
    with neighbours.computing() as all_cores:
        return all_cores


def test_an_engine_by_itself_has_all_cores(engines):
    first, second = engines
    assert [ask(engine) for engine in (first, first, second, first)] == [True] * 4


def test_an_engine_beside_another_has_its_share(engines):
    first, second = engines
    with first.computing() as all_cores:
        assert all_cores
        assert not ask(second)
        begun = second.computing()
        assert not begun.__enter__()
    assert not ask(first)  # beside the second one, which is at it
    begun.__exit__(None, None, None)
    assert [ask(engine) for engine in (first, second, first, second)] == [False, False, True, True]


def test_an_engine_that_fails_or_dies_leaves_the_cores(engines, tmp_path):
    first, second = engines
    with pytest.raises(ZeroDivisionError), first.computing():
        _ = 1 / 0
    code = (
        "import sys; from pathlib import Path; from m2f_backend.cores import Neighbours\n"
        f"with Neighbours(Path({str(tmp_path)!r})).computing(): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert not ask(second)
        other.kill()
    assert [ask(second), ask(second)] == [False, True]


def test_the_engines_of_a_server_meet_at_its_process():
    with Neighbours().computing():
        assert not ask(Neighbours())
