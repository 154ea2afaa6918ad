"""The processes that Triton's Python models run in, as the operating system sees them.

Triton 2.51 neither notices nor restarts a stub that has died; its requests fail, one second each. The process table
says it at once.
"""

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
        pid: its number.
        model: the model that it runs.
        version: the version of it, a folder's name.
        instance: which of the model's instances, as Triton calls it.
        started: when it began, as `time.time` counts.
    """

    pid: int
    model: str
    version: str
    instance: str
    started: float

    @property
    def place(self) -> tuple[str, str, str]:
        """What a stub that takes over has in common with this one."""
        return self.model, self.version, self.instance


class Stubs:
    """All stubs of one server, which has just become ready; any thread may ask."""

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid
        self._lock = threading.Lock()
        self._known: dict[psutil.Process, Stub] = {}
        self._look()  # while all of them live: a zombie does not say what it was

    def lost(self) -> dict[Stub, str]:
        """Return the stubs that run no more, and why; not those whose place another one has taken since.

        One that was there before them takes no place: of two instances the other goes on when its model is reloaded.
        """
        with self._lock:
            self._look()
            ends = {stub: why for process, stub in self._known.items() if (why := _end(process))}
            last = {stub.place: stub for stub in sorted(self._known.values(), key=lambda stub: stub.started)}
            lost = {stub: why for stub, why in ends.items() if last[stub.place] in ends}
            self._known = {process: stub for process, stub in self._known.items() if stub not in ends or stub in lost}
            return lost

    def of(self, model: str) -> list[Stub]:
        """Return a model's stubs that live."""
        with self._lock:
            self._look()
            return [stub for process, stub in self._known.items() if stub.model == model and not _end(process)]

    def processor_seconds(self, model: str) -> float:
        """Return the processor time that a model's living stubs have used."""
        with self._lock:
            self._look()
            return sum(_seconds(process) for process, stub in self._known.items() if stub.model == model)

    def kill(self, stub: Stub) -> None:
        """End a stub, stopped or not; whoever has its number by now is left alone."""
        with self._lock, suppress(psutil.NoSuchProcess):
            for process, known in self._known.items():
                if known == stub:
                    process.kill()

    def forget(self, gone: Stub) -> None:
        """Speak of a stub no more: it was meant to end."""
        with self._lock:
            self._known = {process: stub for process, stub in self._known.items() if stub != gone}

    def _look(self) -> None:
        """Find the stubs that are new."""
        try:
            children = psutil.Process(self._server_pid).children()
        except psutil.NoSuchProcess:  # the server has ended, which is for others to see
            children = []
        for process in children:
            if process not in self._known and (stub := _read(process)):
                self._known[process] = stub


def _read(process: psutil.Process) -> Stub | None:
    """Read a stub's command line: executable, .../<model>/<version>/model.py, six values, the instance's name."""
    try:
        command, started = process.cmdline(), process.create_time()
    except psutil.Error:  # a zombie has none
        return None
    if len(command) < 9 or Path(command[0]).name != _EXECUTABLE:
        return None
    folder = Path(command[1]).parent
    return Stub(pid=process.pid, model=folder.parent.name, version=folder.name, instance=command[8], started=started)


def _end(process: psutil.Process) -> str:
    """Return why a process runs no more, or nothing."""
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
    """Say what ended a process: the kernel keeps it until the parent has asked."""
    with suppress(OSError, ValueError):
        code = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").split()[-1])
        return f"killed by {signal.Signals(code & 0x7F).name}" if code & 0x7F else f"exit code {code >> 8}"
    return "ended"
