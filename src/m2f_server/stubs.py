"""Find the processes of Triton's Python models (stubs), and notice when one ends."""

import os
import signal
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from m2f_server import processes

_EXECUTABLE = "triton_python_backend_stub"


@dataclass(frozen=True)
class Stub:
    """One process.

    Attributes:
        pid: process id.
        model: name of the model that the process runs.
        version: version of the model, which is a folder's name.
        instance: Triton's name of the model instance.
        started: start time in clock ticks since the boot.
    """

    pid: int
    model: str
    version: str
    instance: str
    started: int

    @property
    def place(self) -> tuple[str, str, str]:
        """Model, version and instance: what a stub and its replacement have in common."""
        return self.model, self.version, self.instance


class Stubs:
    """All stubs of one server; thread-safe.

    Create it while all stubs run: a zombie has no command line, which tells its model.

    Every method but `forget` raises `OSError` if the process table cannot be read now. A stub is not lost because of
    that.
    """

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid
        self._lock = threading.Lock()
        self._known: list[Stub] = []
        self._look()

    def lost(self) -> dict[Stub, str]:
        """Return exited stubs that nothing has replaced, with the reason of each exit.

        A stub started before the exit is not a replacement: with two instances the other one keeps running.
        """
        with self._lock:
            self._look()
            ends = {stub: why for stub in self._known if (why := _end(stub))}
            last = {stub.place: stub for stub in sorted(self._known, key=lambda stub: stub.started)}
            lost = {stub: why for stub, why in ends.items() if last[stub.place] in ends}
            self._known = [stub for stub in self._known if stub not in ends or stub in lost]
            return lost

    def of(self, model: str) -> list[Stub]:
        """Return the running stubs of a model."""
        with self._lock:
            self._look()
            return [stub for stub in self._known if stub.model == model and not _end(stub)]

    def processor_seconds(self, models: Iterable[str]) -> dict[str, float]:
        """Return the processor time that the running stubs of each of some models have used."""
        seconds = dict.fromkeys(models, 0.0)
        with self._lock:
            self._look()
            for stub in self._known:
                if stub.model in seconds and (process := _process(stub)):
                    seconds[stub.model] += process.seconds
        return seconds

    def kill(self, stub: Stub) -> None:
        """Kill a stub, even a stopped one. A later process with the same id is left alone."""
        if _process(stub):
            with suppress(ProcessLookupError):
                os.kill(stub.pid, signal.SIGKILL)

    def forget(self, gone: Stub) -> None:
        """Do not report a stub as lost: it was meant to end."""
        with self._lock:
            self._known = [stub for stub in self._known if stub != gone]

    def _look(self) -> None:
        """Add the new stubs."""
        known = {(stub.pid, stub.started) for stub in self._known}
        for process in processes.children(self._server_pid):
            if (process.pid, process.started) not in known and (stub := _read(process)):
                self._known.append(stub)


def _read(process: processes.Process) -> Stub | None:
    """Return the stub with this command line: executable, .../<model>/<version>/model.py, six values, instance."""
    command = processes.command_line(process.pid)  # empty for a zombie
    if len(command) < 9 or Path(command[0]).name != _EXECUTABLE:
        return None
    folder = Path(command[1]).parent
    return Stub(
        pid=process.pid,
        model=folder.parent.name,
        version=folder.name,
        instance=command[8],
        started=process.started,
    )


def _process(stub: Stub) -> processes.Process | None:
    """Return what the kernel says about a stub, or None if the stub is gone. A later process may have its id."""
    process = processes.read(stub.pid)
    return process if process and process.started == stub.started else None


def _end(stub: Stub) -> str:
    """Return why a stub does not run, or an empty string if it runs."""
    process = _process(stub)
    if process is None:
        return "ended"
    if process.state == processes.STOPPED:
        return "stopped"
    return _cause(process.status) if process.state in processes.ENDED else ""


def _cause(status: int) -> str:
    """Return the signal or exit code that ended a process."""
    number = status & 0x7F
    if not number:
        return f"exit code {status >> 8}"
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {number}"
