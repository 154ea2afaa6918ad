"""How many processor cores this process may use, and whether another engine computes on them."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

_MOUNT = re.compile(r"^\S+ \S+ \S+ (?P<root>\S+) (?P<place>\S+) .*- (?P<kind>cgroup2?) \S+ (?P<options>\S+)$", re.M)
_GROUP = re.compile(r"^\d+:(?P<controllers>[^:]*):(?P<path>.*)$", re.M)


def usable_cores(proc: Path = Path("/proc/self")) -> int:
    """Return the number of cores: those that this process may run on, at most the whole cores of its quota.

    `docker run --cpus 2.5` and a Kubernetes limit of 2500m are a quota of 2.5 cores, so 2: threads for a part of a
    core would be stopped in each period. The other half core is for the steps around the engine.

    Args:
        proc: folder with this process's `cgroup` and `mountinfo`.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *map(int, _quotas(proc))]))


def _quotas(proc: Path) -> Iterator[float]:
    """Return the quotas, in cores, of this process's control groups (v1 and v2) and of the groups above them."""
    try:
        mounts, groups = (proc / "mountinfo").read_text(), (proc / "cgroup").read_text()
    except OSError:
        return
    for group, mount in product(_GROUP.finditer(groups), _MOUNT.finditer(mounts)):
        if mount["kind"] == "cgroup2":
            shown = group["controllers"] == ""
        else:
            shown = "cpu" in group["controllers"].split(",") and "cpu" in mount["options"].split(",")
        if shown:
            yield from _quotas_above(Path(mount["place"]), Path(mount["root"]), Path(group["path"]))


def _quotas_above(place: Path, root: Path, group: Path) -> Iterator[float]:
    """Return the quotas of a group and of those above it, as far as a mount shows them.

    Args:
        place: where the mount is.
        root: the group that is shown there.
        group: the group of the process. In a container it may be the host's name of the group that is shown.
    """
    folder = place / (group.relative_to(root) if group.is_relative_to(root) else "")
    for above in (folder, *folder.parents):
        if above.is_relative_to(place):
            yield from _quota(above)


def _quota(folder: Path) -> Iterator[float]:
    """Return the quota of a group, if the group has one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # v2, v1
        with suppress(OSError, ValueError):  # no such file; v2 writes "max" where there is no quota, v1 -1
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
            if quota > 0:
                yield quota / period


class Neighbours:
    """The other engines of the same server: whether they leave all cores to this one.

    An engine that computes holds a shared lock (`flock`) on a file of the server. The server's folder in /proc is such
    a file: nobody has to make or remove it, and the kernel takes the lock back from a process that dies.

    Args:
        file: a file or folder that all engines of a server open. The default is that of the parent process.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = os.open(file or Path(f"/proc/{os.getppid()}"), os.O_RDONLY)
        self._quiet = True

    @contextmanager
    def computing(self) -> Iterator[bool]:
        """Compute inside the `with` block; its value is whether to use all cores.

        That is so if no other engine computes now, and none did when this engine's last block began or ended: under
        load another one begins while this one is at it.
        """
        quiet = self._none_computes()
        fcntl.flock(self._file, fcntl.LOCK_SH)
        try:
            yield quiet and self._quiet
        finally:
            self._quiet = quiet and self._none_computes()
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _none_computes(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
