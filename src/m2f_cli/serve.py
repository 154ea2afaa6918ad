"""The command `m2f serve`."""

import json
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click

from m2f.errors import M2FError
from m2f_server import launch, open_files
from m2f_server.addresses import resolve
from m2f_server.launch import LOOPBACK
from m2f_server.outlet import event_line, never_wait_for_a_reader
from m2f_server.repository_check import is_old
from m2f_server.server import Server
from m2f_server.server_tls import ServerTls
from m2f_server.supervisor import Supervisor

_FILE = click.Path(dir_okay=False, path_type=Path)
_PORT = click.IntRange(0, 65535)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(
    epilog="Ctrl-C or SIGTERM drains the server: after --drain-delay it takes no new requests, answers those in flight "
    "and stops. A second signal stops it at once. "
    "Options for tritonserver go after a double dash: m2f serve -- --rate-limit=off"
)
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    metavar="DIR",
    help="Folder of the model repository.",
)
@click.option(
    "--config-name",
    metavar="NAME",
    help="Use configs/NAME.pbtxt of each model that has it: cpu, gpu, onnxruntime; tensorrt is config.pbtxt. "
    "Default: the fastest of tensorrt, gpu and cpu that this machine can run.",
)
@click.option(
    "--load",
    multiple=True,
    metavar="NAME",
    help="Load only this model, and the steps of an ensemble with it; repeat the option for more. Default: all models.",
)
@click.option(
    "--host",
    default=LOOPBACK,
    show_default=True,
    help="Address of HTTP and gRPC, or a name; 0.0.0.0 is all IPv4 addresses, :: is all addresses.",
)
@click.option("--monitor-host", default=LOOPBACK, show_default=True, help="Address of metrics and probes.")
@click.option("--http-port", type=_PORT, default=8000, show_default=True, help="HTTP port; 0 picks a free one.")
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True, help="gRPC port; 0 picks a free one.")
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True, help="Metrics port; 0 picks a free one.")
@click.option(
    "--health-port", type=_PORT, default=8003, show_default=True, help="Port of /live and /ready; 0 picks a free one."
)
@click.option(
    "--admin-token-file", type=_FILE, help="File with the secret of the restricted APIs. Default: a random secret."
)
@click.option(
    "--tls-cert", type=_FILE, help="Certificate (PEM) of gRPC. HTTP has no TLS and then listens on loopback only."
)
@click.option("--tls-key", type=_FILE, help="Private key (PEM) of the certificate.")
@click.option("--tls-client-ca", type=_FILE, help="Accept only clients with a certificate of this authority (mTLS).")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    help="Seconds to wait until all models are ready.",
)
@click.option(
    "--drain-delay",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds after a stop signal in which /ready says 503 and everything is still served, so that balancers and "
    "clients find out.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    help="Seconds to wait for requests in flight after a stop signal and --drain-delay.",
)
@click.option(
    "--grpc-max-connection-age",
    type=click.IntRange(1, 2**31 - 1),
    metavar="MILLISECONDS",
    help="End each gRPC connection at this age, so that clients look the server's name up again. Requests in flight "
    "are answered. Default: never.",
)
@click.option("--log-file", type=_FILE, help="Append the server's log to this file; - is standard error.")
@click.option("--log-verbose", is_flag=True, help="Write a verbose log, and show it.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the ready line as JSON, which --url of other commands reads."
)
@click.argument("extra_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- TRITON OPTIONS]")
def serve(
    *,
    health_port: int,
    drain_delay: float,
    drain_timeout: float,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run Triton on a model repository until it is told to stop."""
    ports = [port for port in (health_port, *(options[f"{name}_port"] for name in ("http", "grpc", "metrics"))) if port]
    if len(set(ports)) < len(ports):
        raise click.UsageError("--http-port, --grpc-port, --metrics-port and --health-port must differ")
    tls = _tls(tls_cert, tls_key, tls_client_ca)
    never_wait_for_a_reader()
    try:
        _raise_files_limit()
        _tell_of_an_old_export(options["model_repository"])
        for name in ("host", "monitor_host"):  # once: a name server that fails later is no reason to end
            options[name] = resolve(options[name], option=f"--{name.replace('_', '-')}")
        start = partial(launch.serve, tls=tls, **options)
        with _signals() as (stop, hasten):
            Supervisor(
                start=start,
                health_host=options["monitor_host"],
                health_port=health_port,
                drain_delay=drain_delay,
                drain_timeout=drain_timeout,
                announce=lambda server, url: click.echo((_as_json if as_json else _ready_line)(server, url)),
                event=_log,
                stop=stop,
                hasten=hasten,
            ).run()
    except M2FError as error:
        click.echo(f"m2f serve: {error}", err=True)
        sys.exit(1)


def _log(event: str, **circumstances: object) -> None:
    """Write a line to standard error."""
    click.echo(event_line(event, **circumstances), err=True, nl=False)


def _raise_files_limit() -> None:
    limit = open_files.raise_limit()
    if limit < open_files.WANTED:
        _log("few_files", limit=limit, wanted=open_files.WANTED)


def _tell_of_an_old_export(repository: Path) -> None:
    if is_old(repository):
        fix = f"m2f export with the same arguments and --repository {repository}"
        _log("old_layout", what="the answers lack class_names", fix=fix)


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    if cert and key:
        return ServerTls(cert=cert, key=key, client_ca=client_ca)
    if cert or key or client_ca:
        raise click.UsageError("--tls-cert and --tls-key go together, and --tls-client-ca goes with them")
    return None


def _ready_line(server: Server, health_url: str) -> str:
    return (
        f"m2f: ready  http://{server.http_url}  {_grpc_url(server)}  metrics {server.metrics_url}"
        f"  health {health_url}"
        f"  ({', '.join([*server.public, _number_of_models(server)])}, {server.start_seconds:.1f} s)"
        f"{''.join(f'  engine {engine}' for engine in dict.fromkeys(map(_engine, server.engines.values())))}"
        f"{f'  chose {server.choice.label}: {server.choice.why}' if server.choice.why else ''}"
    )


def _engine(facts: Mapping[str, str]) -> str:
    """Return what computes, in words."""
    counts = [f"{facts[name]} {name}" for name in ("threads", "streams") if name in facts]
    what = facts.get("precision") or facts.get("providers", "")
    return ", ".join([f"{facts['engine']} {facts['version']}", what, *counts])


def _number_of_models(server: Server) -> str:
    return f"{len(server.models)} model{'s' if len(server.models) > 1 else ''}"


def _grpc_url(server: Server) -> str:
    return f"{'grpcs' if server.tls else 'grpc'}://{server.grpc_url}"


def _as_json(server: Server, health_url: str) -> str:
    return json.dumps(
        {
            "http": server.http_url,
            "grpc": server.grpc_url,
            "http_url": f"http://{server.http_url}",
            "grpc_url": _grpc_url(server),
            "metrics": server.metrics_url,
            "health": health_url,
            "tls": server.tls,
            "models": server.models,
            "public": server.public,
            "config": server.choice.label,
            "config_chosen_because": server.choice.why,
            "engines": server.engines,
            "start_seconds": round(server.start_seconds, 2),
            "pid": server.pid,
        }
    )


@contextmanager
def _signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Yield the events that the first and the second stop signal set; later signals do nothing.

    A thread sets the events, because `Event.set` in a signal handler deadlocks if the signal interrupts `Event.wait` in
    the main thread.
    """
    stop, hasten = threading.Event(), threading.Event()
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def pass_on() -> None:
        for event in (stop, hasten):
            signals.get()
            event.set()

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        signals.put(signum)

    threading.Thread(target=pass_on, daemon=True).start()
    heard = [number for number in _STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # ignored: nohup
    before = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield stop, hasten
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
