"""Read the kernel's process table.

A process is identified by its id and its start time in clock ticks since the boot. Setting the clock changes neither.
An error of the machine, such as too many open files, is raised: it does not mean that a process has ended.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_GONE = (FileNotFoundError, ProcessLookupError)
_TICKS = os.sysconf("SC_CLK_TCK")
ENDED = frozenset("ZX")
STOPPED = "T"
AT_WORK = frozenset("RD")  # runs, waits for a processor, or waits for the disk


@dataclass(frozen=True)
class Process:
    """What the kernel says about a process.

    Attributes:
        pid: process id.
        state: the kernel's letter, for example `R` for running, `T` for stopped, `Z` for zombie.
        parent: process id of the parent.
        seconds: processor time that the process has used.
        started: start time in clock ticks since the boot.
        status: wait status of a process that has ended; the kernel keeps it until the parent asks for it.
    """

    pid: int
    state: str
    parent: int
    seconds: float
    started: int
    status: int


@dataclass(frozen=True)
class Thread:
    """What the kernel says about a thread.

    Attributes:
        state: the kernel's letter.
        blocked: bit mask of the blocked signals; the lowest bit is signal 1.
    """

    state: str
    blocked: int


def read(pid: int) -> Process | None:
    """Return what the kernel says about a process, or None if there is no such process.

    Raises:
        OSError: the process table cannot be read now, for example because too many files are open.
    """
    try:
        content = (_PROC / str(pid) / "stat").read_bytes()
    except _GONE:
        return None
    fields = content.rpartition(b") ")[2].split()  # the name before them may contain anything
    used, system, started, status = (int(fields[number]) for number in (11, 12, 19, -1))
    return Process(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        seconds=(used + system) / _TICKS,
        started=started,
        status=status,
    )


def children(pid: int) -> Iterator[Process]:
    """Yield the children of a process, zombies included.

    Raises:
        OSError: the process table cannot be read now.
    """
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            with suppress(PermissionError):  # another user's, where /proc is mounted with hidepid
                process = read(int(folder.name))
                if process is not None and process.parent == pid:
                    yield process


def threads(pid: int) -> Iterator[Thread]:
    """Yield the threads of a process.

    Raises:
        OSError: the process table cannot be read now.
    """
    with suppress(*_GONE):
        for folder in (_PROC / str(pid) / "task").iterdir():
            with suppress(*_GONE):
                content = (folder / "status").read_bytes()
                fields = dict(line.split(b":", 1) for line in content.splitlines())
                yield Thread(state=fields[b"State"].split()[0].decode(), blocked=int(fields[b"SigBlk"], 16))


def command_line(pid: int) -> list[str]:
    """Return the command line of a process; empty if the process has ended.

    Raises:
        OSError: the process table cannot be read now.
    """
    try:
        content = (_PROC / str(pid) / "cmdline").read_bytes()
    except _GONE:
        return []
    return os.fsdecode(content).split("\0")[:-1]
