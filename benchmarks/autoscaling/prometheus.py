"""Run a Prometheus of its own on loopback, and ask it what it has recorded."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory

import httpcore

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/m2f.rules.yml"
_UNPACKED = Path(sys.prefix) / "prometheus/usr/bin"  # by make .venv/.prometheus
_START_S = 30.0


def find_program(name: str) -> str | None:
    """Return the path of `prometheus` or `promtool`; None if it is not installed."""
    return shutil.which(name, path=_UNPACKED) or shutil.which(name)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus.

    Attributes:
        url: address of its HTTP API.
    """

    url: str

    def ask(self, expression: str, *, start: float, end: float, step_s: float) -> dict[str, list[tuple[float, float]]]:
        """Evaluate an expression over a time.

        Args:
            expression: PromQL.
            start: first time, in seconds since the epoch.
            end: last time.
            step_s: seconds between two values.

        Returns:
            Time and value of each point by the label `instance` of the series, which is empty for a sum.

        Raises:
            ValueError: Prometheus refuses the expression.
        """
        query = urllib.parse.urlencode({"query": expression, "start": start, "end": end, "step": step_s})
        answer = httpcore.request("GET", f"{self.url}/api/v1/query_range?{query}")
        if answer.status != HTTPStatus.OK:
            raise ValueError(f"Prometheus refuses {expression}: {answer.content.decode()}")
        found = json.loads(answer.content)["data"]["result"]
        return {
            series["metric"].get("instance", ""): [(float(at), float(value)) for at, value in series["values"]]
            for series in found
        }


@contextmanager
def prometheus(targets: Sequence[str], *, interval_s: int = 5) -> Iterator[Prometheus]:
    """Scrape some addresses and apply the rules of `deploy/prometheus`, for the length of the `with` block.

    Args:
        targets: `host:port` of each address.
        interval_s: seconds between two scrapes.

    Raises:
        FileNotFoundError: Prometheus is not installed.
        TimeoutError: Prometheus does not start.
    """
    program = find_program("prometheus")
    if program is None:
        raise FileNotFoundError("there is no prometheus: make .venv/.prometheus, or install the package of your system")
    config = {
        "global": {"scrape_interval": f"{interval_s}s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "m2f", "static_configs": [{"targets": list(targets)}]}],
    }
    with TemporaryDirectory(prefix="m2f_prometheus_") as folder:
        path = Path(folder, "prometheus.yml")
        path.write_text(json.dumps(config))  # JSON is YAML
        running = Prometheus(f"http://127.0.0.1:{_free_port()}")
        command = [program, f"--config.file={path}", f"--storage.tsdb.path={folder}/data", "--log.level=warn",
                   f"--web.listen-address={running.url.removeprefix('http://')}"]  # fmt: skip
        with Path(folder, "log").open("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
            try:
                _wait_until_ready(running.url, process, Path(log.name))
                yield running
            finally:
                process.terminate()
                process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpcore.request("GET", f"{url}/-/ready").status == HTTPStatus.OK:
                return
        except httpcore.NetworkError:  # it does not listen yet
            pass
        time.sleep(0.1)
    raise TimeoutError(f"Prometheus did not start: {log.read_text()[-500:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
