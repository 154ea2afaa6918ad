"""Processor time and memory of a process and of all that it started."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

import psutil

_STUB = re.compile(r"/(\w+)/\d+/model\.py")  # in the command line of a Python stub of Triton


@dataclass(frozen=True)
class Usage:
    """What processes of one name have used.

    Attributes:
        processes: how many there are.
        cpu_s: processor time since they started, with that of their children that have ended.
        memory_mb: proportional set size: shared pages are divided among the processes that share them.
    """

    processes: int
    cpu_s: float
    memory_mb: float


def usage(pid: int, *, memory: bool = True) -> dict[str, Usage]:
    """Return the usage of a process and its descendants by name; a Python stub is named after its model.

    Args:
        pid: process id of the first process.
        memory: whether to look at the memory, which takes some milliseconds for each process.
    """
    found: dict[str, Usage] = {}
    first = psutil.Process(pid)
    for process in [first, *first.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            name = _name(process)
            times = process.cpu_times()
            cpu_s = times.user + times.system + times.children_user + times.children_system
            memory_mb = process.memory_full_info().pss / 1e6 if memory else 0.0
            before = found.get(name, Usage(0, 0.0, 0.0))
            found[name] = Usage(before.processes + 1, before.cpu_s + cpu_s, before.memory_mb + memory_mb)
    return found


def _name(process: psutil.Process) -> str:
    stub = _STUB.search(" ".join(process.cmdline()))
    return stub.group(1) if stub else process.name()
