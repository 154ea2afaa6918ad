"""How many processor cores this process may use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_MOUNT = re.compile(r"^\S+ \S+ \S+ (?P<root>\S+) (?P<place>\S+) .* - cgroup2? \S+ (?P<options>\S+)$", re.MULTILINE)
_GROUP = re.compile(r"^\d+:(?P<controllers>[^:]*):(?P<path>.*)$", re.MULTILINE)


def usable_cores(proc: Path = Path("/proc/self")) -> int:
    """Return the number of cores: those that this process may run on, at most the whole cores of its quota.

    `docker run --cpus 2.5` and a Kubernetes limit of 2500m are a quota of 2.5 cores, so 2: threads for a part of a
    core would be stopped in each period. The other half core is for the steps around the engine.

    Args:
        proc: folder with this process's `cgroup` and `mountinfo`.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, *(int(quota) for quota in _quotas(proc)))) if cores > 1 else 1


def _quotas(proc: Path) -> Iterator[float]:
    """Return the quotas, in cores, of this process's control groups (v1 and v2) and of the groups above them."""
    yield float(os.cpu_count() or 1)  # so that there is one
    try:
        mounts, groups = (proc / "mountinfo").read_text(), (proc / "cgroup").read_text()
    except OSError:
        return
    for group in _GROUP.finditer(groups):
        controllers = group["controllers"].split(",")
        if controllers not in ([""], ["cpu"]) and "cpu" not in controllers:
            continue
        for mount in _MOUNT.finditer(mounts):
            options = mount["options"].split(",")
            if controllers == [""] or "cpu" in options:
                yield from _quotas_above(Path(mount["place"]), Path(mount["root"]), Path(group["path"]))


def _quotas_above(place: Path, root: Path, group: Path) -> Iterator[float]:
    """Return the quotas of a group and of those above it, as far as a mount shows them."""
    inside = group.relative_to(root) if group.is_relative_to(root) else Path()
    for folder in (place / inside, *(place / inside).parents):
        if folder.is_relative_to(place):
            yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """Return the quota of a group, if the group has one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if float(quota) > 0:
                yield float(quota) / float(period)
        except (OSError, ValueError):  # no such file; v2 writes "max" where there is no quota
            continue
