"""Find the processes of Triton's Python models (stubs), and notice when one ends."""

import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_EXECUTABLE = "triton_python_backend_stub"
_ENDED = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


@dataclass(frozen=True)
class Stub:
    """One process.

    Attributes:
        pid: process id.
        model: name of the model that the process runs.
        version: version of the model, which is a folder's name.
        instance: Triton's name of the model instance.
        started: start time, as `time.time`.
    """

    pid: int
    model: str
    version: str
    instance: str
    started: float

    @property
    def place(self) -> tuple[str, str, str]:
        """Model, version and instance: what a stub and its replacement have in common."""
        return self.model, self.version, self.instance


class Stubs:
    """All stubs of one server; thread-safe.

    Create it while all stubs run: a zombie has no command line, which tells its model.
    """

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid
        self._lock = threading.Lock()
        self._known: dict[psutil.Process, Stub] = {}
        self._look()

    def lost(self) -> dict[Stub, str]:
        """Return exited stubs that nothing has replaced, with the reason of each exit.

        A stub started before the exit is not a replacement: with two instances the other one keeps running.
        """
        with self._lock:
            self._look()
            ends = {stub: why for process, stub in self._known.items() if (why := _end(process))}
            last = {stub.place: stub for stub in sorted(self._known.values(), key=lambda stub: stub.started)}
            lost = {stub: why for stub, why in ends.items() if last[stub.place] in ends}
            self._known = {process: stub for process, stub in self._known.items() if stub not in ends or stub in lost}
            return lost

    def of(self, model: str) -> list[Stub]:
        """Return the running stubs of a model."""
        with self._lock:
            self._look()
            return [stub for process, stub in self._known.items() if stub.model == model and not _end(process)]

    def processor_seconds(self, model: str) -> float:
        """Return the processor time that the running stubs of a model have used."""
        with self._lock:
            self._look()
            return sum(_seconds(process) for process, stub in self._known.items() if stub.model == model)

    def kill(self, stub: Stub) -> None:
        """Kill a stub, even a stopped one. A later process with the same id is left alone."""
        with self._lock, suppress(psutil.NoSuchProcess):
            for process, known in self._known.items():
                if known == stub:
                    process.kill()

    def forget(self, gone: Stub) -> None:
        """Do not report a stub as lost: it was meant to end."""
        with self._lock:
            self._known = {process: stub for process, stub in self._known.items() if stub != gone}

    def _look(self) -> None:
        """Add the new stubs."""
        try:
            children = psutil.Process(self._server_pid).children()
        except psutil.NoSuchProcess:  # the server has ended; the watch reports that
            children = []
        for process in children:
            if process not in self._known and (stub := _read(process)):
                self._known[process] = stub


def _read(process: psutil.Process) -> Stub | None:
    """Return the stub with this command line: executable, .../<model>/<version>/model.py, six values, instance."""
    try:
        command, started = process.cmdline(), process.create_time()
    except psutil.Error:  # a zombie has no command line
        return None
    if len(command) < 9 or Path(command[0]).name != _EXECUTABLE:
        return None
    folder = Path(command[1]).parent
    return Stub(pid=process.pid, model=folder.parent.name, version=folder.name, instance=command[8], started=started)


def _end(process: psutil.Process) -> str:
    """Return why a process does not run, or an empty string if it runs."""
    try:
        status = process.status() if process.is_running() else psutil.STATUS_DEAD
    except psutil.NoSuchProcess:
        status = psutil.STATUS_DEAD
    if status == psutil.STATUS_STOPPED:
        return "stopped"
    return _cause(process.pid) if status in _ENDED else ""


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _cause(pid: int) -> str:
    """Return the signal or exit code that ended a process, which the kernel keeps until the parent asks for it."""
    with suppress(OSError, ValueError):
        code = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").split()[-1])
        return f"killed by {signal.Signals(code & 0x7F).name}" if code & 0x7F else f"exit code {code >> 8}"
    return "ended"
