"""What a server has of processes and memory, to see that nothing died and nothing grew."""

from pathlib import Path


class Harm:
    """A server as it is now, to be compared with later.

    Attributes:
        stubs: process id to the model that the process runs.
    """

    def __init__(self, server):
        self._server = server
        self.stubs = self._stubs()
        self._memory = self._used()

    def died(self):
        """The models whose processes are gone, and `tritonserver` if that is."""
        now = self._stubs()
        gone = [model for pid, model in self.stubs.items() if pid not in now]
        return gone if self._server.is_running() else ["tritonserver", *gone]

    def grown(self):
        """Bytes that the server and its stubs have taken since, in memory of their own and in shared memory."""
        return self._used() - self._memory

    def _stubs(self):
        stubs = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                words = _read(folder / "cmdline").split("\0")
                if "triton_python_backend_stub" in words[0] and _parent(folder) == self._server.pid:
                    stubs[int(folder.name)] = words[1]
        return stubs

    def _used(self):
        pages = [_read(Path("/proc", str(pid), "statm")).split() for pid in (self._server.pid, *self.stubs)]
        return sum(int(words[1]) for words in pages if words) * 4096  # resident, with what is shared


def _parent(folder):
    words = _read(folder / "stat").rpartition(")")[2].split()
    return int(words[1]) if words else None


def _read(path):
    try:
        return path.read_text(errors="replace")  # others' command lines may be no UTF-8
    except OSError:  # it ended meanwhile
        return ""
