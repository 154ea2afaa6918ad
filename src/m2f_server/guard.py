"""Remove the processes, shared memory and folder of a server, even if the process that started it was killed.

Run as a script (standard library only, no package import), this module waits for the end of its standard input. The
kernel closes it when the starting process dies for any reason. A parent-death signal would not do: it reaches only the
server, not its stubs, shared memory and folder, and it fires when the starting *thread* ends.
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
    """Starts and controls the guarding process.

    Args:
        shm_prefix: prefix of the names of the server's shared-memory segments.
        work_dir: the server's temporary folder.
    """

    def __init__(self, *, shm_prefix: str, work_dir: Path) -> None:
        self._shm_prefix = shm_prefix
        self._work_dir = work_dir
        self._process_group: int | None = None
        command = [sys.executable, "-I", "-S", __file__, shm_prefix, str(work_dir)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, text=True)

    def watch(self, process_group: int) -> None:
        """Set the process group to remove: the server leads it, and its stubs are in it."""
        self._process_group = process_group
        self._tell(str(process_group))

    def clean_up(self) -> None:
        """Remove everything now, and end the guarding process."""
        sweep(process_group=self._process_group, shm_prefix=self._shm_prefix, work_dir=self._work_dir)
        self._tell(_RELEASED)
        with suppress(subprocess.TimeoutExpired):  # it ends with this process at the latest
            self._process.communicate(timeout=_GONE_WITHIN_S)
        if self._process_group is not None:
            _reap(self._process_group)

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the guarding process was killed
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()


def sweep(*, process_group: int | None, shm_prefix: str, work_dir: Path) -> None:
    """Kill a process group, if given, then remove its shared-memory segments and its work folder."""
    deadline = time.monotonic() + _GONE_WITHIN_S
    while process_group is not None and _lives(process_group) and time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.killpg(process_group, signal.SIGKILL)
        time.sleep(0.02)
    for segment in _SHARED_MEMORY.glob(f"{shm_prefix}*"):
        segment.unlink(missing_ok=True)
    shutil.rmtree(work_dir, ignore_errors=True)


def _reap(process_group: int) -> None:
    """Reap the stubs that became children of this process when their server died, which happens to process 1."""
    with suppress(ChildProcessError):
        while os.waitpid(-process_group, os.WNOHANG)[0]:
            pass


def _lives(process_group: int) -> bool:
    """Return whether a process of the group runs. Zombies do not count: only their parent can remove them."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = stat.read_text(errors="replace").rpartition(") ")[2].split()[:3]
            if int(group) == process_group and state not in "ZX":
                return True
    return False


def main() -> None:
    """Wait for the end of standard input, then clean up unless the guard was released."""
    shm_prefix, work_dir = sys.argv[1:]
    words = sys.stdin.read().split()
    if _RELEASED not in words:
        process_group = int(words[0]) if words else None
        sweep(process_group=process_group, shm_prefix=shm_prefix, work_dir=Path(work_dir))


if __name__ == "__main__":
    main()
