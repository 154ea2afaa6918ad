"""NVIDIA's perf_analyzer: install it, write its inputs, run it once."""

from __future__ import annotations

import base64
import csv
import http.client
import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy.typing as npt

from m2f.ensembles import Ensemble
from m2f.preprocess import Preprocessing

FOLDER = Path(sys.prefix) / "perf_analyzer"
PINNED = "tritonclient==2.50.0"  # its manylinux1 wheel holds the binary; later ones need a newer glibc
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
SHARED_MEMORY = "shared memory"
TRANSPORTS = ("http", "grpc", SHARED_MEMORY)
_OUTPUT_ROOM = 64 << 20  # bytes of shared memory for an output of free size


class PerfAnalyzerError(Exception):
    """perf_analyzer cannot be run, or a request failed; the message says what to do."""


@dataclass(frozen=True)
class Target:
    """A running server.

    Attributes:
        http_url, grpc_url: `host:port`.
        headers: of requests to the restricted interfaces; shared memory needs them.
    """

    http_url: str
    grpc_url: str
    headers: Mapping[str, str]


def measure(
    target: Target,
    model: str,
    *,
    inputs: Path,
    transport: str = "grpc",
    in_flight: int,
    batch: int = 1,
    window_s: float,
) -> dict[str, float]:
    """Run perf_analyzer once, for three windows.

    Args:
        target: the server.
        model: name of the model.
        inputs: as `write_inputs` writes it.
        transport: one of `TRANSPORTS`. Shared memory goes over HTTP: perf_analyzer sends no header over gRPC.
        in_flight: requests at a time.
        batch: images in a request.
        window_s: seconds of a window; five times as long where no answer comes in that time.

    Returns:
        `images_s`, and the client's `p50_ms` and `p99_ms` of a request.

    Raises:
        PerfAnalyzerError: it failed, or a request did.
    """
    grpc = transport == "grpc"
    load = ["-m", model, "-i", "grpc" if grpc else "http", "-u", target.grpc_url if grpc else target.http_url]
    load += ["--concurrency-range", str(in_flight), "-b", str(batch)]
    if transport == SHARED_MEMORY:
        load += ["--shared-memory", "system", "--output-shared-memory-size", str(_OUTPUT_ROOM)]
        load += [word for name, value in target.headers.items() for word in ("-H", f"{name}:{value}")]
    try:
        report = _run(load, inputs=inputs, window_s=window_s)
    except PerfAnalyzerError as error:
        if "larger time window" not in str(error):
            raise
        report = _run(load, inputs=inputs, window_s=5 * window_s)  # no answer within a window
    return {
        "images_s": float(report["Inferences/Second"]),
        "p50_ms": float(report["p50 latency"]) / 1000,
        "p99_ms": float(report["p99 latency"]) / 1000,
    }


def _run(load: Sequence[str], *, inputs: Path, window_s: float) -> dict[str, str]:
    """Run the binary and return the one row of its report."""
    binary, libraries = find_perf_analyzer(FOLDER)
    path = inputs.with_suffix(".csv")
    path.unlink(missing_ok=True)
    # three windows, whose mean is reported; a tight limit would make a busy machine report nothing
    windows = [
        "--measurement-interval",
        str(int(window_s * 1000)),
        "--max-trials",
        "3",
        "--stability-percentage",
        "999",
    ]
    command = [str(binary), *load, "--input-data", str(inputs), "-f", str(path), *windows]
    environment, limit = _environment(libraries), 60 + 20 * window_s
    shown = " ".join(load[:4])
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise PerfAnalyzerError(f"perf_analyzer did not end within {limit:.0f} s: {shown}") from error
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    if not rows:
        raise PerfAnalyzerError(f"perf_analyzer failed: {shown}\n{done.stdout}{done.stderr}")
    return rows[0]


def find_perf_analyzer(folder: Path) -> tuple[Path, Path]:
    """Return the binary and a folder of the libraries it needs, installing the binary into `folder` at first use.

    Raises:
        PerfAnalyzerError: it cannot be installed, or does not start.
    """
    binary = folder / "bin" / "perf_analyzer"
    if not binary.is_file():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # the pinned release under a folder of its own: the environment keeps its tritonclient
        failed = subprocess.call([*pip, "--no-deps", "--upgrade", "--target", str(folder), PINNED])
        if failed or not binary.is_file():
            raise PerfAnalyzerError(
                f"could not install perf_analyzer: pip install --no-deps --target {folder} {PINNED}"
            )
    libraries = _link_libraries(folder / "lib")
    done = subprocess.run(
        [str(binary), "--version"], env=_environment(libraries), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise PerfAnalyzerError(
            f"perf_analyzer does not start: {(done.stderr or done.stdout).strip()} (install m2f[server], which brings "
            "its libraries; or Debian's libb64-0d, and nvidia-cuda-runtime-cu12 on LD_LIBRARY_PATH)"
        )
    return binary, libraries


def _link_libraries(folder: Path) -> Path:
    """Link the two libraries that perf_analyzer needs, which nvidia-pytriton carries under other names."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = find_spec("pytriton")
    carried = Path(next(iter(spec.submodule_search_locations or []))).parent / "nvidia_pytriton.libs" if spec else None
    for name, pattern in LIBRARIES.items():
        found = next(carried.glob(pattern), None) if carried else None
        link = folder / name
        if found and not link.exists():
            link.unlink(missing_ok=True)  # a link to an older installation
            link.symlink_to(found)
    return folder


def _environment(libraries: Path) -> dict[str, str]:
    before = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join([str(libraries), *([before] if before else [])])}


def write_inputs(path: Path, requests: Sequence[Mapping[str, npt.NDArray[Any]]]) -> None:
    """Write perf_analyzer's input file.

    Args:
        path: path of the file.
        requests: arrays by input name, without the batch dimension; sent in turn. Of object dtype: bytes.
    """
    data = [
        {name: {"content": {"b64": _base64(array)}, "shape": list(array.shape)} for name, array in request.items()}
        for request in requests
    ]
    path.write_text(json.dumps({"data": data}))


def _base64(array: npt.NDArray[Any]) -> str:
    """Encode a tensor's content as it is sent: the length of an element of a BYTES tensor stands before it."""
    if array.dtype == object:
        return base64.b64encode(b"".join(struct.pack("<I", len(data)) + data for data in array.flat)).decode()
    return base64.b64encode(array.tobytes()).decode()


def server_preprocessing(http_url: str, step: str) -> Preprocessing:
    """Return the preprocessing as a live server's step is configured."""
    parameters = get_json(http_url, f"/v2/models/{step}/config").get("parameters", {})
    return Preprocessing.from_repository({key: value["string_value"] for key, value in parameters.items()})


def get_json(http_url: str, path: str) -> dict[str, Any]:
    """Return what a server answers to a GET request.

    Raises:
        PerfAnalyzerError: no answer, or an error.
    """
    connection = http.client.HTTPConnection(http_url, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body: dict[str, Any] = json.loads(response.read())
    except OSError as error:
        raise PerfAnalyzerError(f"no answer from http://{http_url}: {error}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise PerfAnalyzerError(f"http://{http_url}{path}: {body.get('error', response.status)}")
    return body


class Steps:
    """The mean time of each step of an ensemble, from the server's statistics, since this object was made.

    Args:
        http_url: `host:port` of the server.
        ensemble: whose steps to look at.
    """

    def __init__(self, http_url: str, ensemble: Ensemble) -> None:
        self._http_url, self._ensemble = http_url, ensemble
        self._before = self._totals()

    def milliseconds(self) -> dict[str, float]:
        """Return the compute time (`STEP_ms`) and the waiting time (`STEP_queue_ms`) of a request, by step."""
        spent: dict[str, float] = {}
        after = self._totals()
        for step in self._ensemble.steps:
            if step not in after:
                continue  # a step that this server does without
            kinds = {kind: after[step][kind] - self._before[step][kind] for kind in after[step]}
            if kinds["requests"]:
                name = step.removeprefix(f"{self._ensemble.name.removesuffix('_tensor')}_")
                spent[f"{name}_ms"] = kinds["compute"] / kinds["requests"]
                spent[f"{name}_queue_ms"] = kinds["queue"] / kinds["requests"]
        return spent

    def busy_s(self) -> dict[str, float]:
        """Return the seconds in which instances of a step were at work, by model; a batch counts once."""
        return {model: (kinds["busy"] - self._before[model]["busy"]) / 1e3 for model, kinds in self._totals().items()}

    def _totals(self) -> dict[str, dict[str, float]]:
        """Return model -> requests, and milliseconds of each kind, since the server started."""
        totals = {}
        for model in get_json(self._http_url, "/v2/models/stats")["model_stats"]:
            requests = model["inference_stats"]
            totals[model["name"]] = {
                "requests": requests["success"]["count"],
                "queue": requests["queue"]["ns"] / 1e6,
                "compute": _computing(requests),
                "busy": sum(_computing(executions) for executions in model.get("batch_stats", ())),
            }
        return totals


def _computing(statistics: Mapping[str, Any]) -> float:
    """Return the milliseconds in which an instance copies the inputs, computes, and copies the outputs."""
    return sum(statistics[f"compute_{phase}"]["ns"] for phase in ("input", "infer", "output")) / 1e6
