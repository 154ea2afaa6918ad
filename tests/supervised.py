"""`m2f serve` as operators run it: a process of its own, its probes, its log lines."""

import json
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
FREE_PORTS = ("--http-port=0", "--grpc-port=0", "--metrics-port=0", "--health-port=0")
PROGRAM = (sys.executable, "-c", "from m2f_cli.serve import serve; serve(prog_name='m2f serve')")


class Supervised:
    """A running command.

    Attributes:
        process: it.
        http_url: `host:port`, as `Server` has it; so has `grpc_url`.
        metrics_url: those of the server; the command's own are `at_health("metrics")`.
    """

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self.process = process
        self._log = log
        line = process.stdout.readline()
        assert line, log.read_text()
        self.announced = json.loads(line)
        self.http_url, self.grpc_url = self.announced["http"], self.announced["grpc"]
        self.metrics_url = self.announced["metrics"]

    @property
    def server(self) -> psutil.Process:
        """The `tritonserver` of this moment."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.name() == "tritonserver")

    @property
    def name(self) -> str:
        """What its folder and its shared memory are called."""
        words = self.server.cmdline()
        option = "--backend-config=python,shm-region-prefix-name="
        return next(word for word in words if word.startswith(option)).removeprefix(option).removesuffix("-")

    def stubs(self) -> dict[str, psutil.Process]:
        """The live stub of each model."""
        found = {}
        for child in self.server.children():
            with suppress(psutil.Error):  # zombies have no command line
                command = child.cmdline()
                if Path(command[0]).name == "triton_python_backend_stub":
                    found[Path(command[1]).parts[-3]] = child
        return found

    def at_health(self, path: str) -> str:
        """The URL of something of the health port."""
        return self.announced["health"].replace("/ready", f"/{path}")

    def probe(self, name: str) -> tuple[int, dict]:
        """Ask /live or /ready: the status and the body."""
        try:
            with urllib.request.urlopen(self.at_health(name), timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:  # an open connection would hold the port
                return error.code, json.load(error)

    def log(self) -> str:
        """All that it has written to standard error."""
        return self._log.read_text()

    def events(self) -> list[dict[str, str]]:
        """The log lines so far; `at` is their time in seconds since the epoch."""
        found = []
        for line in self.log().splitlines():
            if line.startswith("time="):
                fields = dict(word.partition("=")[::2] for word in shlex.split(line))
                found.append(
                    {**fields, "at": datetime.fromisoformat(fields["time"].replace("Z", "+00:00")).timestamp()}
                )
        return found

    def wait_for(self, name: str, *, since: float, timeout: float = 60.0, **fields: str) -> dict:
        """Wait for an event that happened after a time, and return it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for event in self.events():
                if event["event"] == name and event["at"] >= since - 0.001 and fields.items() <= event.items():
                    return event
            assert self.process.poll() is None or name in ("drained", "server_ended"), self.log()
            time.sleep(0.05)
        raise AssertionError(f"no {name} {fields} within {timeout} s:\n{self.log()}")

    def terminate(self, timeout: float = 60.0) -> float:
        """Send SIGTERM and return how many seconds the end took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout)
        return time.monotonic() - started


@contextmanager
def supervised(
    tmp_path: Path, *options: str, repository: Path = ROOT / "model_repository", config_name: str | None = "cpu"
):
    """Run the command until the block is left; whatever happened, nothing of it may stay."""
    log = tmp_path / f"m2f-serve-{time.monotonic_ns()}.log"
    arguments = [*PROGRAM, "--model-repository", str(repository), *FREE_PORTS, "--json", *options]
    if config_name:
        arguments += ["--config-name", config_name]
    with log.open("w") as errors:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        running = Supervised(process, log)
        name = running.name
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        process.stdout.close()
    assert not leftovers(name)


def leftovers(name: str) -> list[str]:
    """What a server of this name, which ended a moment ago, has left."""
    deadline = time.monotonic() + 30
    while True:
        found = [str(path) for path in Path("/dev/shm").glob(f"{name}*")]
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            found += [line[:100]] if name in line else []
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)
