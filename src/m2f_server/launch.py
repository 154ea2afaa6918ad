"""Start a `tritonserver` on a model repository for the length of a `with` block."""

import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from m2f_backend.backpressure import METRICS
from m2f_server.access import Access, read_access
from m2f_server.guard import ServerGuard
from m2f_server.locate import Installation, prepare
from m2f_server.ports import pick_ports
from m2f_server.repository_check import check_repository
from m2f_server.serve_errors import PortTakenError, ServeError
from m2f_server.server import EXIT_TIMEOUT_S, Server, reachable
from m2f_server.server_tls import ServerTls

LOOPBACK = "127.0.0.1"
_ATTEMPTS = 3  # a free port may be taken by someone else before the server gets to it
_OWN_LOG_BYTES = 8 << 20  # of a log that nobody asked to keep, and that standard error has too
_ENVIRONMENT = {  # unless the caller's says otherwise
    # per model instance; more only get in each other's way
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # glibc makes eight heaps a core, and each keeps what the largest requests took of it
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What `serve` was asked for, checked."""

    repository: Path
    config_name: str | None
    hosts: Mapping[str, str]
    ports: Mapping[str, int]
    access: Access
    tls: ServerTls | None
    timeout: float
    log_file: Path | None
    log_verbose: bool
    log_echo: bool
    extra_args: Sequence[str]
    stop: threading.Event


@contextmanager
def serve(
    *,
    model_repository: str | Path = "model_repository",
    config_name: str | None = None,
    host: str = LOOPBACK,
    monitor_host: str = LOOPBACK,
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    timeout: float = 120.0,
    log_file: str | Path | None = None,
    log_verbose: bool = False,
    admin_token_file: str | Path | None = None,
    tls: ServerTls | None = None,
    extra_args: Sequence[str] = (),
    stop: threading.Event | None = None,
) -> Iterator[Server]:
    """Run a server for the length of the `with` block.

    Args:
        model_repository: the folder of models.
        config_name: `configs/<name>.pbtxt` is used where a model has one; None is the TensorRT production setting.
        host: IPv4 address to listen on, for HTTP and gRPC.
        monitor_host: IPv4 address of the metrics.
        http_port: port of the HTTP API; 0 picks a free one, as for the others.
        grpc_port: port of the gRPC API.
        metrics_port: port of the Prometheus metrics.
        timeout: seconds until every model must be ready.
        log_file: the server's log is added to it; by default a temporary file that goes with the server. `-` passes
            the log on to standard error.
        log_verbose: let the server say more, and pass its log on to standard error too.
        admin_token_file: holds the secret of the restricted interfaces (`access`); by default a random one.
        tls: certificates of the gRPC port. With them HTTP, which Triton has no TLS for, listens on loopback alone.
        extra_args: further options for `tritonserver`.
        stop: set from elsewhere, it ends the wait for the models.

    Yields:
        The server, every model ready.

    Raises:
        ServeError: it could not be started; the subclass says why.
    """
    settings = _Settings(
        repository=Path(model_repository).absolute(),
        config_name=config_name,
        hosts={"http": LOOPBACK if tls else host, "grpc": host, "metrics": monitor_host},
        ports={"http": http_port, "grpc": grpc_port, "metrics": metrics_port},
        timeout=timeout,
        log_file=Path(log_file).absolute() if log_file and str(log_file) != "-" else None,
        log_verbose=log_verbose,
        log_echo=log_verbose or str(log_file) == "-",
        access=read_access(Path(admin_token_file) if admin_token_file else None),
        tls=tls,
        extra_args=extra_args,
        stop=stop or threading.Event(),
    )
    check_repository(settings.repository, config_name=config_name)
    with ExitStack() as stack:
        yield _start_with_free_ports(settings, stack)


def _start_with_free_ports(settings: _Settings, stack: ExitStack) -> Server:
    """Start, and start again where a port that was free is not any more."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return stack.enter_context(_running(settings))
        except PortTakenError as error:
            if settings.ports[error.protocol] != 0:
                raise
    return stack.enter_context(_running(settings))


@contextmanager
def _running(settings: _Settings) -> Iterator[Server]:
    """Start once; whatever happens, no process, shared memory or folder stays."""
    name = f"m2f-{secrets.token_hex(6)}"  # of the server, its folder and its shared memory
    work_dir = Path(tempfile.gettempdir()) / name
    with _start_errors():
        guard = ServerGuard(shm_prefix=name, work_dir=work_dir)
    try:
        with _start_errors():
            work_dir.mkdir(mode=0o700)
            server = _start(settings, guard, name=name, work_dir=work_dir)
        try:
            server.wait_ready(timeout=settings.timeout, stop=settings.stop)
            yield server
        finally:
            server.stop()
    finally:
        guard.clean_up()


def _start(settings: _Settings, guard: ServerGuard, *, name: str, work_dir: Path) -> Server:
    """Start the process."""
    installation = prepare(work_dir)
    identity = f"m2f-{secrets.token_hex(16)}"  # what it calls itself, which nobody else can know before it answers
    ports = pick_ports(hosts=settings.hosts, ports=settings.ports)
    arguments = [*installation.arguments, *_arguments(settings, name, identity, ports, work_dir)]
    log_path = settings.log_file or work_dir / "tritonserver.log"
    log_start = log_path.stat().st_size if log_path.is_file() else 0
    process = _spawn(
        installation,
        arguments,
        environment={METRICS: f"{reachable(settings.hosts['metrics'])}:{ports['metrics']}"},
        cwd=work_dir,
        log_path=log_path,
        echo=settings.log_echo,
        most=None if settings.log_file else _OWN_LOG_BYTES,
    )
    guard.watch(process.pid)
    return Server(
        process=process,
        identity=identity,
        hosts=settings.hosts,
        ports=ports,
        log_path=log_path,
        log_start=log_start,
        access=settings.access,
        tls=settings.tls is not None,
    )


@contextmanager
def _start_errors() -> Iterator[None]:
    """Let a full disk or too many processes be a server that did not start."""
    try:
        yield
    except OSError as error:
        raise ServeError(f"tritonserver could not be started: {error}") from error


def _arguments(settings: _Settings, name: str, identity: str, ports: Mapping[str, int], work_dir: Path) -> list[str]:
    """Return the command line, without the executable."""
    arguments = [
        f"--id={identity}",
        f"--model-repository={_plain_path(settings.repository, work_dir)}",
        "--model-control-mode=explicit",  # so that one model can be reloaded, and the ensembles unloaded at the end
        "--load-model=*",
        "--disable-auto-complete-config",  # it starts every Python model twice, and the configurations are complete
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={name}-",
        "--grpc-infer-allocation-pool-size=0",  # the pool keeps the largest requests and answers for good
        "--metrics-config=summary_latencies=true",  # quantiles; without it there are sums alone
    ]
    for protocol, port in ports.items():
        arguments += [f"--{protocol}-address={settings.hosts[protocol]}", f"--{protocol}-port={port}"]
    arguments += settings.access.arguments
    if settings.tls:
        arguments += settings.tls.arguments
    if settings.config_name:
        arguments.append(f"--model-config-name={settings.config_name}")
    if settings.log_verbose:
        arguments.append("--log-verbose=1")
    return [*arguments, *settings.extra_args]


def _plain_path(repository: Path, work_dir: Path) -> Path:
    """Return the repository's path, through a link where a shell would not take it as one word (Triton uses one)."""
    if shlex.quote(str(repository)) == str(repository):
        return repository
    link = work_dir / "model_repository"
    link.symlink_to(repository)
    return link


def _spawn(
    installation: Installation,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: Path,
    log_path: Path,
    echo: bool,
    most: int | None,
) -> subprocess.Popen[bytes]:
    """Start the server as leader of its own session, so that a Ctrl-C in the terminal reaches only us.

    It runs in its work folder because Triton's Python models have the current folder on `sys.path`.

    Args:
        installation: what to start.
        arguments: after the executable.
        environment: what is to be set in it besides this process's.
        cwd: the work folder.
        log_path: the log is added to it.
        echo: copy the log to standard error, too.
        most: bytes at which a log that is copied is emptied in the file.
    """
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [str(installation.binary), *arguments],
            cwd=cwd,
            env={**_ENVIRONMENT, **os.environ, **installation.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if echo else log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if echo and process.stdout is not None:
        threading.Thread(target=_copy, args=(process.stdout, log_path, most), daemon=True).start()
    return process


def _copy(stream: IO[bytes], log_path: Path, most: int | None) -> None:
    """Copy the server's log to standard error and to a file, emptied at `most` bytes, until it ends.

    Neither may stop the copying, by a full disk, say: the server would wait for ever with a full pipe.
    """
    with log_path.open("ab", buffering=0) as log:
        for line in stream:
            with suppress(OSError):
                if most is not None and log.tell() > most:
                    log.truncate(0)
                log.write(line)
            with suppress(OSError):
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
