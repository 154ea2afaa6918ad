"""Guard a server: a process that sweeps what the server leaves, even if this process is killed (see `remains`)."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

from m2f_server import processes, remains

_KILLED_WITHIN_S = 2.0


class ServerGuard:
    """Claims a name for a server, and starts and keeps the guarding process.

    Attributes:
        name: name of the server.
        work_dir: the server's temporary folder.
        process_group: the server's process group, once it runs.

    Raises:
        OSError: there is no room for the folder, or no process can be started.
    """

    def __init__(self) -> None:
        self._claim = remains.claim()
        self.name, self.work_dir = self._claim.name, self._claim.work_dir
        self.process_group: int | None = None
        try:
            self._process = self._start()
        except OSError:
            remains.sweep(self.name, self.work_dir)
            self._claim.release()
            raise

    def renew(self) -> bool:
        """Start another guarding process if the present one was lost, and return whether it was.

        Raises:
            OSError: the process table cannot be read now, or no process can be started now.
        """
        process = processes.read(self._process.pid) if self._process.poll() is None else None
        if process is not None and process.state != processes.STOPPED:
            return False
        self._end()
        self._process = self._start()
        return True

    def clean_up(self) -> None:
        """Remove everything of the server, and end the guarding process. Never raises.

        The guarding process sweeps, because this one may have no free file descriptor left.
        """
        with suppress(OSError, subprocess.TimeoutExpired):
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(remains.SWEPT_WITHIN_S + 2)
        swept = self._process.returncode == 0
        self._end()
        if not swept:
            remains.sweep(self.name, self.work_dir)
        if self.process_group is not None:
            _reap(self.process_group)
        self._claim.release()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the guarding process. It has the name too, so that a later sweep ends it if it hangs."""
        return subprocess.Popen(
            [sys.executable, "-I", "-S", remains.__file__, self.name, str(self.work_dir)],
            stdin=subprocess.PIPE,
            env={**os.environ, remains.NAME_VARIABLE: self.name},
            start_new_session=True,
        )

    def _end(self) -> None:
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(_KILLED_WITHIN_S)


def _reap(process_group: int) -> None:
    """Reap the stubs that became children of this process when their server died, which happens to process 1."""
    with suppress(OSError):
        while os.waitpid(-process_group, os.WNOHANG)[0]:
            pass
