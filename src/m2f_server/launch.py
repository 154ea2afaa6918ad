"""Start a `tritonserver` on a model repository for the length of a `with` block."""

import os
import secrets
import shlex
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from m2f_backend.backpressure import METRICS
from m2f_backend.calls import SHORTAGES
from m2f_server import triton_2_51
from m2f_server.access import Access, read_access
from m2f_server.addresses import reachable, resolve, with_port
from m2f_server.configuration import Choice, choose
from m2f_server.guard import ServerGuard
from m2f_server.locate import prepare
from m2f_server.open_files import raise_limit
from m2f_server.outlet import LogFile, Outlet, standard_stream
from m2f_server.ports import pick_ports
from m2f_server.remains import NAME_VARIABLE
from m2f_server.repository_check import check_repository, is_export
from m2f_server.serve_errors import PortTakenError, ServeError, ShortageError
from m2f_server.server import Server
from m2f_server.server_log import ServerLog
from m2f_server.server_tls import ServerTls

LOOPBACK = "127.0.0.1"
_ATTEMPTS = 3  # another process may take a free port before the server does
_OWN_LOG_BYTES = 8 << 20  # largest size of a temporary log
_GLIBC = {  # a request at 800 x 1344 passes some 27 MB of logits on, step by step: new memory costs more than the copy
    "malloc.mmap_threshold": 32 << 20,  # smaller memory is kept for the next request; glibc allows no larger value
    "malloc.trim_threshold": 256 << 20,  # the most that a process keeps at the end of its heap
    "malloc.hugetlb": 1,  # larger memory comes in pages of 2 MiB
    "cpu.x86_non_temporal_threshold": 1 << 20,  # larger copies do not read what they overwrite
}
_ENVIRONMENT = {  # the caller's own values have priority
    "GLIBC_TUNABLES": ":".join(f"glibc.{name}={value}" for name, value in _GLIBC.items()),
    "OMP_NUM_THREADS": "1",  # threads of each model instance; more slow each other down
    "OPENBLAS_NUM_THREADS": "1",
    **triton_2_51.ENVIRONMENT,
}


@dataclass(frozen=True, kw_only=True)
class _LaunchOptions:
    """The checked arguments of `serve`."""

    repository: Path
    choice: Choice
    load: Sequence[str]
    wanted: Sequence[str]
    strict: bool
    hosts: Mapping[str, str]
    ports: Mapping[str, int]
    access: Access
    tls: ServerTls | None
    grpc_max_connection_age: int | None
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
    load: Sequence[str] = (),
    strict: bool = True,
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
    grpc_max_connection_age: int | None = None,
    extra_args: Sequence[str] = (),
    stop: threading.Event | None = None,
) -> Iterator[Server]:
    """Run a server for the length of the `with` block.

    Args:
        model_repository: the folder of models.
        config_name: use `configs/<name>.pbtxt` of each model that has such a file, for example `cpu`; `tensorrt` uses
            `config.pbtxt`, the setting for production. None chooses (see `configuration.choose`).
        load: names of the models to load; an ensemble's steps are loaded with it. Empty for all models.
        strict: raise an error if an export, or a model that `load` names, does not load. If False, the server runs
            without that model, as long as it has a public ensemble.
        host: IP address or name to listen on for HTTP and gRPC.
        monitor_host: IP address or name to listen on for metrics.
        http_port: port of the HTTP API; 0 picks a free port.
        grpc_port: port of the gRPC API; 0 picks a free port.
        metrics_port: port of the Prometheus metrics; 0 picks a free port.
        timeout: seconds until all models must be ready.
        log_file: file to which the server's log is appended. `-` is standard error. None is a temporary file of 8 MiB
            at most, which is removed with the server. Lines that the file does not take are dropped and counted.
        log_verbose: write a verbose log, and copy it to standard error.
        admin_token_file: file with the secret of the restricted interfaces (see `access`); None uses a random secret.
        tls: certificates of the gRPC port. Triton has no TLS for HTTP, so HTTP then listens on loopback only.
        grpc_max_connection_age: milliseconds after which a gRPC connection is ended; requests in flight are answered.
            None for never.
        extra_args: more options for `tritonserver`.
        stop: an event that another thread sets to end the wait for the models.

    Yields:
        The server, with all models ready.

    Raises:
        ServeError: the server could not be started; the subclass says why.
    """
    address = resolve(host, option="--host")
    repository = Path(model_repository).absolute()
    choice = choose(config_name, repository, load=load, extra_args=extra_args)
    options = _LaunchOptions(
        repository=repository,
        choice=choice,
        load=load,
        wanted=check_repository(repository, config_name=choice.name, load=load),
        strict=strict,
        hosts={
            "http": LOOPBACK if tls else address,
            "grpc": address,
            "metrics": resolve(monitor_host, option="--monitor-host"),
        },
        ports={"http": http_port, "grpc": grpc_port, "metrics": metrics_port},
        timeout=timeout,
        log_file=Path(log_file).absolute() if log_file and str(log_file) != "-" else None,
        log_verbose=log_verbose,
        log_echo=log_verbose or str(log_file) == "-",
        access=read_access(Path(admin_token_file) if admin_token_file else None),
        tls=tls,
        grpc_max_connection_age=grpc_max_connection_age,
        extra_args=extra_args,
        stop=stop or threading.Event(),
    )
    with ExitStack() as stack:
        yield _start_with_free_ports(options, stack)


def _start_with_free_ports(options: _LaunchOptions, stack: ExitStack) -> Server:
    """Start the server; retry if another process took a port that was picked as free."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return stack.enter_context(_running(options))
        except PortTakenError as error:
            if options.ports[error.protocol] != 0:
                raise
    return stack.enter_context(_running(options))


@contextmanager
def _running(options: _LaunchOptions) -> Iterator[Server]:
    """Start the server once, and leave no process, shared memory or folder behind."""
    with _start_errors():
        guard = ServerGuard()
    server: Server | None = None
    try:
        with _start_errors():
            server = _start(options, guard)
        try:
            server.wait_ready(timeout=options.timeout, stop=options.stop)
            yield server
        finally:
            server.stop()
    finally:
        guard.clean_up()
        if server is not None:
            server.log.close()


@contextmanager
def _start_errors() -> Iterator[None]:
    """Raise `ServeError` for an error of the system, such as a full disk or too many processes."""
    try:
        yield
    except OSError as error:
        kind = ShortageError if error.errno in SHORTAGES else ServeError
        raise kind(f"tritonserver could not be started: {error}") from error


def _start(options: _LaunchOptions, guard: ServerGuard) -> Server:
    """Start the process.

    The server leads a session of its own, so that a Ctrl-C in the terminal reaches only this process. It runs in its
    work folder, because Python models have the current folder on `sys.path`.
    """
    name, work_dir = guard.name, guard.work_dir
    installation = prepare(work_dir)
    identity = f"{name}-{secrets.token_hex(16)}"  # what the server answers, which no other program can know
    ports = pick_ports(hosts=options.hosts, ports=options.ports)
    metrics_url = with_port(reachable(options.hosts["metrics"]), ports["metrics"])
    echo = standard_stream(2) if options.log_echo else None
    log_file = _log_file(options, work_dir)
    process = subprocess.Popen(
        [str(installation.binary), *installation.arguments, *_arguments(options, name, identity, ports, work_dir)],
        cwd=work_dir,
        env={**_ENVIRONMENT, **os.environ, **installation.environment, METRICS: metrics_url, NAME_VARIABLE: name},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    guard.process_group = process.pid
    log = ServerLog(process, file=Outlet(log_file), echo=echo)
    with suppress(OSError):  # the server runs with fewer files, too
        raise_limit(process.pid)
    return Server(
        process=process,
        guard=guard,
        identity=identity,
        hosts=options.hosts,
        ports=ports,
        log=log,
        access=options.access,
        tls=options.tls is not None,
        choice=options.choice,
        wanted=options.wanted,
        needed=frozenset(options.load or (name for name in options.wanted if is_export(options.repository / name))),
        strict=options.strict,
    )


def _log_file(options: _LaunchOptions, work_dir: Path) -> LogFile:
    if options.log_file:
        return LogFile(options.log_file)
    return LogFile(work_dir / "tritonserver.log", max_bytes=_OWN_LOG_BYTES)


def _arguments(
    options: _LaunchOptions, name: str, identity: str, ports: Mapping[str, int], work_dir: Path
) -> list[str]:
    """Return the server's command line, without the executable."""
    arguments = [
        f"--id={identity}",
        f"--model-repository={_plain_path(options.repository, work_dir)}",
        "--model-control-mode=explicit",  # allows to reload one model, and to unload the ensembles at the end
        *(f"--load-model={model}" for model in options.load or ("*",)),
        "--exit-on-error=false",  # the models that load are served; `Server.wait_ready` decides about the others
        "--disable-auto-complete-config",  # it would start every Python model twice
        f"--exit-timeout-secs={triton_2_51.EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={name}-",
        "--metrics-config=summary_latencies=true",  # quantiles in addition to sums
        *triton_2_51.ARGUMENTS,
    ]
    for protocol, port in ports.items():
        host = options.hosts[protocol]
        address = triton_2_51.IPV6[protocol].format(host) if ":" in host else host
        arguments += [f"--{protocol}-address={address}", f"--{protocol}-port={port}"]
    arguments += options.access.arguments
    if options.tls:
        arguments += options.tls.arguments
    if options.choice.name:
        arguments.append(f"--model-config-name={options.choice.name}")
    if options.grpc_max_connection_age:
        arguments.append(f"--grpc-max-connection-age={options.grpc_max_connection_age}")
    if options.log_verbose:
        arguments.append("--log-verbose=1")
    return [*arguments, *options.extra_args]


def _plain_path(repository: Path, work_dir: Path) -> Path:
    """Return the repository's path, or a link to it if a shell would split the path: Triton uses a shell."""
    if shlex.quote(str(repository)) == str(repository):
        return repository
    link = work_dir / "model_repository"
    link.symlink_to(repository)
    return link
