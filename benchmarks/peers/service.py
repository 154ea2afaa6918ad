"""Start a peer, ask it, see what it uses, stop it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import m2f_client
from benchmarks.frame import UnavailableError
from benchmarks.frame.usage import usage
from m2f.preprocess import Preprocessing

from .catalog import HUGGINGFACE, Peer
from .equality import Equality, compare
from .material import PICTURES, PYTHON, SERVERS, Material, expected, huggingface, material, peer_environment, pictures
from .servers.engines import ENGINES
from .wire import DENSE, INSTANCES, JSON, Format, Wire, WireError, triton_format

START_S = 120
WARM_UP_CALLS = 4
FORMATS: dict[str, Format] = {
    "m2f": triton_format("mask2former", INSTANCES, batched=True),
    "uvicorn": JSON,
    "litserve": JSON,
    "one_step": triton_format("one_step", INSTANCES, batched=False),
    "naive": triton_format("naive", DENSE, batched=True),
}


class ServiceError(Exception):
    """A peer does not start; the message holds the end of what it wrote."""


@dataclass
class Running:
    """A peer that answers.

    Attributes:
        send: sends picture number n (modulo their number), and waits for the answer.
        bytes_sent, bytes_answered: mean of a request and of an answer, on the wire; None where none is sent.
        equality: how near the answers are; None for a bare engine.
        usage: processor seconds so far, and megabytes now, of all processes; without the client.
    """

    send: Callable[[int], object]
    bytes_sent: float | None
    bytes_answered: float | None
    equality: Equality | None
    usage: Callable[[], tuple[float, float | None]]


@contextmanager
def running(peer: Peer, model: str) -> Iterator[Running]:
    """Run a peer for the length of the `with` block. Its answers have been compared when the block begins.

    Raises:
        ServiceError: it does not start.
        UnequalError: it does not find what mmdetection finds.
        UnavailableError: the peers' environment is not installed.
    """
    if not PYTHON.is_file():
        raise UnavailableError("the peers have no environment: run make .venv/.peers")
    files = pictures()[: PICTURES[model]]
    encoded = [file.read_bytes() for file in files]
    made = material(model)
    if peer.kind == "bare":
        yield _bare(peer, made, encoded)
        return
    folder, wanted = (None, expected(made, files)) if peer.name != HUGGINGFACE else huggingface(files)
    network = made.plain_network() if peer.plain else made.network
    more = {**peer.environment, "MODEL": str(network), **({"CHECKPOINT": str(folder)} if folder else {})}
    form = FORMATS[peer.target if peer.kind == "triton" else peer.kind]
    requests = [form.request(picture) for picture in encoded]
    with _started(peer, made, peer_environment(made, more), requests[0]) as (processes, ports, grpc_port):
        wire = Wire(*ports)
        with ThreadPoolExecutor(WARM_UP_CALLS) as pool:  # several at once: each process has had its first request
            replies = list(pool.map(wire.exchange, requests))
        equality = compare([form.read(reply) for reply in replies], wanted)
        send: Callable[[int], object] = lambda number: wire.exchange(requests[number % len(requests)])  # noqa: E731
        if peer.target == "client":
            client = m2f_client.Client(f"grpc://127.0.0.1:{grpc_port}")
            send = lambda number: client.predict(encoded[number % len(encoded)])  # noqa: E731
        yield Running(
            send,
            sum(map(len, requests)) / len(requests),
            sum(len(head) + len(body) for head, body in replies) / len(replies),
            equality,
            lambda: _usage(processes),
        )


@contextmanager
def _started(
    peer: Peer, made: Material, environment: dict[str, str], request: bytes
) -> Iterator[tuple[list[subprocess.Popen[bytes]], list[int], int]]:
    """Start a peer: its processes, their HTTP ports, and the gRPC port of m2f.

    `uvicorn --workers 2` often gives all connections to one of the two; here each process has a port of its own.
    """
    *ports, grpc_port = _free_ports(1 + (peer.workers if peer.kind == "uvicorn" else 1))
    with ExitStack() as stack:
        processes = [
            stack.enter_context(_process(_command(peer, made, port, grpc_port), environment)) for port in ports
        ]
        for process, port in zip(processes, ports, strict=True):
            _wait(process, port, request)
        yield processes, ports, grpc_port


def _command(peer: Peer, made: Material, http_port: int, grpc_port: int) -> list[str]:
    port = str(http_port)
    if peer.kind == "uvicorn":
        return [str(PYTHON), "-m", "uvicorn", peer.target, "--port", port, "--no-access-log", "--log-level", "warning"]
    if peer.kind == "litserve":
        return [str(PYTHON), "litserve_app.py", port, str(peer.workers)]
    if peer.kind == "triton":
        name = "two" if peer.workers == 2 else "none"
        return [sys.executable, "plain_triton.py", str(SERVERS / peer.target), port, name]
    m2f = [str(Path(sys.prefix) / "bin/m2f"), "serve", "--config-name", "cpu", "--http-port", port]
    m2f += ["--model-repository", str(made.repository), "--grpc-port", str(grpc_port)]
    return [*m2f, "--metrics-port", "0", "--health-port", "0"]


def _bare(peer: Peer, made: Material, encoded: Sequence[bytes]) -> Running:
    """Return the engine alone, in this process, on inputs that are ready."""
    engine = ENGINES[peer.engine](str(made.network), threads=peer.threads, calls=peer.calls)
    side = made.side
    preprocessing = Preprocessing(scale=(side, side), input_size=(side, side), pad_value=(124, 116, 104))
    inputs = [preprocessing([picture])[0] for picture in encoded]
    return Running(
        lambda number: engine(inputs[number % len(inputs)]), None, None, None, lambda: (time.process_time(), None)
    )


def _usage(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[float, float]:
    found = [one for process in processes for one in usage(process.pid).values()]
    return sum(one.cpu_s for one in found), sum(one.memory_mb for one in found)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


@contextmanager
def _process(command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a service in a session of its own, and end all of it afterwards."""
    with tempfile.TemporaryDirectory(prefix="m2f_peer_") as folder, (Path(folder) / "log").open("w+b") as log:
        environment = {**environment, "TMPDIR": folder}
        process = subprocess.Popen(
            command, cwd=SERVERS, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        except (ServiceError, WireError) as error:
            log.seek(0)
            raise ServiceError(f"{error}\n{log.read()[-2000:].decode(errors='replace')}") from error
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            _end_session(process.pid)
            process.wait()


def _end_session(pid: int) -> None:
    """Kill what a service left behind."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait(process: subprocess.Popen[bytes], port: int, request: bytes) -> None:
    """Wait until a service answers a request."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            Wire(port).exchange(request)
            return
        except (OSError, WireError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServiceError(f"no answer within {START_S} s, or the process ended: {error}") from error
            time.sleep(0.2)
