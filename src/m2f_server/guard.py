"""Leave nothing behind: remove what is left of a server, also when the process that started it was killed.

Run as a script (standard library only, no package import), this waits for the end of its standard input, which
the kernel closes when the starting process dies of whatever cause. A parent-death signal would reach the server
alone, not its stubs, shared memory and folder, and would fire when the starting *thread* ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_RELEASED = "released"
_SHARED_MEMORY = Path("/dev/shm")
_GONE_WITHIN_S = 5.0


class ServerGuard:
    """The starting process's end of the watching one.

    Args:
        shm_prefix: what the names of the server's shared-memory segments start with.
        work_dir: the server's temporary folder.
    """

    def __init__(self, *, shm_prefix: str, work_dir: Path) -> None:
        self._shm_prefix = shm_prefix
        self._work_dir = work_dir
        self._process_group: int | None = None
        command = [sys.executable, "-I", "-S", __file__, shm_prefix, str(work_dir)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, text=True)

    def watch(self, process_group: int) -> None:
        """Name the process group that has to go; its leader is the server, its stubs are in it."""
        self._process_group = process_group
        self._tell(str(process_group))

    def clean_up(self) -> None:
        """Remove everything now and end the watching process."""
        sweep(process_group=self._process_group, shm_prefix=self._shm_prefix, work_dir=self._work_dir)
        self._tell(_RELEASED)
        with suppress(subprocess.TimeoutExpired):  # it does nothing any more, and ends with this process at the latest
            self._process.communicate(timeout=_GONE_WITHIN_S)
        if self._process_group is not None:
            _reap(self._process_group)

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # someone killed it
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()


def sweep(*, process_group: int | None, shm_prefix: str, work_dir: Path) -> None:
    """Kill a process group if there is one, then remove its shared-memory segments and its work folder."""
    deadline = time.monotonic() + _GONE_WITHIN_S
    while process_group is not None and _lives(process_group) and time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.killpg(process_group, signal.SIGKILL)
        time.sleep(0.02)
    for segment in _SHARED_MEMORY.glob(f"{shm_prefix}*"):
        segment.unlink(missing_ok=True)
    shutil.rmtree(work_dir, ignore_errors=True)


def _reap(process_group: int) -> None:
    """Take note of the end of stubs that became our children when their server died: as process 1 we are to."""
    with suppress(ChildProcessError):
        while os.waitpid(-process_group, os.WNOHANG)[0]:
            pass


def _lives(process_group: int) -> bool:
    """Tell whether a process of the group runs; zombies do not count: whose children they are is not our choice."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = stat.read_text(errors="replace").rpartition(") ")[2].split()[:3]
            if int(group) == process_group and state not in "ZX":
                return True
    return False


def main() -> None:
    """Wait for the end of standard input, then clean up unless released."""
    shm_prefix, work_dir = sys.argv[1:]
    words = sys.stdin.read().split()
    if _RELEASED not in words:
        process_group = int(words[0]) if words else None
        sweep(process_group=process_group, shm_prefix=shm_prefix, work_dir=Path(work_dir))


if __name__ == "__main__":
    main()
