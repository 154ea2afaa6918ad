"""Remove what a server leaves: processes, shared memory and folders. Standard library only, no package import.

Everything of a server has its name, `m2f-` and 12 random hexadecimal digits:

| what | where |
|---|---|
| processes | `M2F_SERVER_NAME=<name>` in their environment |
| shared memory | `/dev/shm/<name>-*` |
| work folder | `<temporary folder>/<name>` |
| files of a rollout's candidate | `/tmp/folder*`, whose file `m2f-server` begins with the name |

The process that starts a server locks the work folder and a file in the shared memory, then writes the name into the
folder and the folder's path into the file. The kernel ends a lock with its process, however the process ends. So where
something is written and can be locked, the server is dead, and nothing else is removed. Each of the two places has a
lock of its own, because containers may share one place and not the other. systemd-tmpfiles, which removes old files,
leaves a locked folder alone.

Run as a script, this module guards a server: it waits for the end of its standard input, which the kernel closes when
the starting process dies for any reason. Then it sweeps. A parent-death signal would not do: it reaches only the
server, not its stubs, shared memory and folders, and it fires when the starting *thread* ends.
"""

import fcntl
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAME_VARIABLE = "M2F_SERVER_NAME"
OWNER_FILE = "m2f-server"
SWEPT_WITHIN_S = 5.0
_NAME = re.compile(r"m2f-[0-9a-f]{12}")
_LOCK = "-lock"
_PROC = Path("/proc")
_SHARED_MEMORY = Path("/dev/shm")
_OF_TRITON = Path("/tmp")  # whatever TMPDIR says. Source: core, src/filesystem/implementations/common.h
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Claim:
    """The name and the work folder of a server, locked until `release` or the end of this process.

    Attributes:
        name: name of the server.
        work_dir: the server's temporary folder.
        locks: descriptors that hold the locks.
    """

    name: str
    work_dir: Path
    locks: list[int]

    def release(self) -> None:
        """End the locks."""
        while self.locks:
            os.close(self.locks.pop())


def claim() -> Claim:
    """Return a new name and its empty work folder.

    Raises:
        OSError: the temporary folder or the shared memory cannot be written to.
    """
    name = f"m2f-{os.urandom(6).hex()}"
    claimed = Claim(name, Path(tempfile.gettempdir()) / name, [])
    shared = _SHARED_MEMORY / f"{name}{_LOCK}"
    try:
        claimed.work_dir.mkdir(mode=0o700)
        shared.touch(mode=0o600)
        for path in (claimed.work_dir, shared):
            claimed.locks.append(os.open(path, os.O_RDONLY))
            fcntl.flock(claimed.locks[-1], fcntl.LOCK_SH)
        (claimed.work_dir / OWNER_FILE).write_text(name)
        shared.write_bytes(os.fsencode(claimed.work_dir))
    except OSError:
        sweep(name, claimed.work_dir)
        claimed.release()
        raise
    return claimed


def sweep_dead() -> list[str]:
    """Remove what dead servers of this user have left, and return their names. Never raises."""
    folders: list[Path] = []
    with suppress(OSError):  # there is no temporary folder
        folders = [path.parent for path in _entries(Path(tempfile.gettempdir()), f"m2f-*/{OWNER_FILE}")]
    names = set()
    for path in [*folders, *_entries(_SHARED_MEMORY, f"m2f-*{_LOCK}")]:
        name = path.name.removesuffix(_LOCK)
        with suppress(OSError):
            if _NAME.fullmatch(name) and _swept(name, path):
                names.add(name)
    return sorted(names)


def _swept(name: str, lock: Path) -> bool:
    """Remove what a server has left, unless the server lives and therefore holds this lock; return whether it was dead.

    Raises:
        OSError: the server lives, or the lock was removed or belongs to another user.
    """
    descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        work_dir = lock if lock.is_dir() else Path(os.fsdecode(lock.read_bytes()))
        dead = os.fstat(descriptor).st_uid == os.geteuid() and work_dir.name == name
        if dead:
            sweep(name, work_dir)
        return dead
    finally:
        os.close(descriptor)


def sweep(name: str, work_dir: Path) -> None:
    """Kill the processes of a server, then remove its shared memory and folders. Never raises."""
    _kill(name)
    for segment in _entries(_SHARED_MEMORY, f"{name}-*"):
        with suppress(OSError):
            segment.unlink()
    remove_candidates(f"{name}-")
    shutil.rmtree(work_dir, ignore_errors=True)


def remove_candidates(owner: str) -> None:
    """Remove Triton's copies of the files of candidates. Never raises.

    Triton keeps the copy of a model whose process was killed.

    Args:
        owner: how the file `m2f-server` of a copy begins.
    """
    for mark in _entries(_OF_TRITON, f"folder*/{OWNER_FILE}"):
        with suppress(OSError):
            mine = mark.parent.lstat().st_uid == os.geteuid() and not mark.is_symlink()
            if mine and mark.read_text(errors="replace").startswith(owner):
                shutil.rmtree(mark.parent, ignore_errors=True)


def _kill(name: str) -> None:
    """Kill the processes of a server until none runs."""
    deadline = time.monotonic() + SWEPT_WITHIN_S
    killed: set[int] = set()
    while ((found := _processes(name)) or any(map(_runs, killed))) and time.monotonic() < deadline:
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
        time.sleep(0.02)


def _processes(name: str) -> set[int]:
    """Return the processes that have the server's name in their environment, except this one."""
    mark, found = f"{NAME_VARIABLE}={name}".encode(), set()
    for environment in _entries(_PROC, "[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if mark in environment.read_bytes().split(b"\0"):
                found.add(int(environment.parent.name))
    return found - {os.getpid()}


def _runs(pid: int) -> bool:
    """Return whether a process is more than a zombie, which only its parent can remove."""
    with suppress(OSError):
        return (_PROC / str(pid) / "stat").read_bytes().rpartition(b") ")[2][:1] not in b"ZX"
    return False


def _entries(folder: Path, pattern: str) -> list[Path]:
    """Return the matching paths in a folder; none if the folder cannot be read."""
    with suppress(OSError):
        return list(folder.glob(pattern))
    return []


def main() -> None:
    """Wait for the end of standard input, then sweep. A stop signal to a whole group of processes is not the end."""
    name, work_dir = sys.argv[1:]
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sweep(name, Path(work_dir))


if __name__ == "__main__":
    main()
