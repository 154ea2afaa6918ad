"""Drive the served ensembles with NVIDIA's perf_analyzer, over HTTP and gRPC, at several concurrencies.

    python benchmarks/perf_analyzer.py [IMAGE ...] [--url HOST:PORT --grpc-url HOST:PORT] [--json]

perf_analyzer asks for every output that a model declares. So a server that this script starts gets a copy of the
ensembles that declare the structured outputs only (`--outputs structured`), as a client would ask for them; with
`--url` the server is taken as it is, dense masks and raw logits included.
"""

import argparse
import base64
import csv
import http.client
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from m2f.contract import PUBLIC_MODEL, PUBLIC_TENSOR_MODEL, STRUCTURED_OUTPUTS
from m2f.preprocess import Preprocessing
from m2f_server import ServeError, serve

ROOT = Path(__file__).resolve().parents[1]
PINNED = "tritonclient==2.50.0"  # its manylinux1 wheel holds the binary; later ones need a newer glibc
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MODELS = (PUBLIC_MODEL, PUBLIC_TENSOR_MODEL)
STEPS = ("preprocess", "engine", "postprocess", "masks", "panoptic", "semantic", "raw")


class BenchmarkError(Exception):
    """The benchmark cannot be run; the message says what to do."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        model: the ensemble.
        protocol: `http` or `grpc`.
        concurrency: requests in flight.
        images_per_second: throughput.
        p50_ms, p99_ms: latency seen by the client.
        step_ms: step to its mean compute time per request, from the server's statistics.
        queue_ms: step to the mean time a request waited for it.
    """

    model: str
    protocol: str
    concurrency: int
    images_per_second: float
    p50_ms: float
    p99_ms: float
    step_ms: dict[str, float]
    queue_ms: dict[str, float]


def find_perf_analyzer(folder: Path) -> tuple[Path, Path]:
    """Return the binary and a folder of the libraries it needs, installing the binary into `folder` at first use.

    Raises:
        BenchmarkError: it cannot be installed, or does not start.
    """
    binary = folder / "bin" / "perf_analyzer"
    if not binary.is_file():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # the pinned release under a folder of its own: the environment keeps its tritonclient
        failed = subprocess.call([*pip, "--no-deps", "--upgrade", "--target", str(folder), PINNED])
        if failed or not binary.is_file():
            raise BenchmarkError(f"could not install perf_analyzer: pip install --no-deps --target {folder} {PINNED}")
    libraries = _link_libraries(folder / "lib")
    done = subprocess.run(
        [str(binary), "--version"], env=_environment(libraries), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchmarkError(
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


@contextmanager
def structured_repository(repository: Path) -> Iterator[Path]:
    """Make a repository whose ensembles declare the structured outputs only, and do without the other steps."""
    with tempfile.TemporaryDirectory(prefix="m2f_benchmark_") as temporary:
        for model in (path for path in repository.iterdir() if path.is_dir()):
            if model.name in MODELS:
                config = text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())
                _keep_structured(config)
                (Path(temporary) / model.name / "1").mkdir(parents=True)
                (Path(temporary) / model.name / "config.pbtxt").write_text(text_format.MessageToString(config))
            else:
                (Path(temporary) / model.name).symlink_to(model.absolute())
        yield Path(temporary)


def _keep_structured(config: Any) -> None:
    """Drop the other outputs, the steps that make them, and the tensors that only those steps read."""
    outputs = [output for output in config.output if output.name in STRUCTURED_OUTPUTS]
    kept, declared = set(STRUCTURED_OUTPUTS), {output.name for output in config.output}
    makes = [(step, declared & set(step.output_map.values())) for step in config.ensemble_scheduling.step]
    steps = [step for step, made in makes if not made or made & kept]
    wanted = {output.name for output in outputs}.union(*(step.input_map.values() for step in steps))
    for step in steps:
        for key in [key for key, tensor in step.output_map.items() if tensor not in wanted]:
            del step.output_map[key]
    del config.output[:], config.ensemble_scheduling.step[:]
    config.output.extend(outputs)
    config.ensemble_scheduling.step.extend(steps)


def write_inputs(model: str, *, images: Sequence[Path], http_url: str, path: Path) -> None:
    """Write perf_analyzer's input file: the image files, or what the server's own preprocessing makes of them."""
    if model == PUBLIC_MODEL:
        data = [
            {"image": {"content": {"b64": _base64(_element(image.read_bytes()))}, "shape": [1]}} for image in images
        ]
    else:
        preprocessing = _server_preprocessing(http_url)
        data = [_tensors(preprocessing, image.read_bytes()) for image in images]
    path.write_text(json.dumps({"data": data}))


def _tensors(preprocessing: Preprocessing, encoded: bytes) -> dict[str, Any]:
    batch, img_shape, ori_shape = preprocessing([encoded])
    return {
        "input": {"content": {"b64": _base64(batch[0].tobytes())}, "shape": list(batch.shape[1:])},
        "img_shape": {"content": img_shape[0].tolist(), "shape": [2]},
        "ori_shape": {"content": ori_shape[0].tolist(), "shape": [2]},
    }


def _element(data: bytes) -> bytes:
    """Serialise one element of a BYTES tensor: base64 content is sent as it is, so the length goes first."""
    return struct.pack("<I", len(data)) + data


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _server_preprocessing(http_url: str) -> Preprocessing:
    """Return the preprocessing as the live server is configured."""
    parameters = _get_json(http_url, f"/v2/models/{PUBLIC_MODEL}_preprocess/config").get("parameters", {})
    return Preprocessing.from_repository({key: value["string_value"] for key, value in parameters.items()})


def _get_json(http_url: str, path: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection(http_url, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body: dict[str, Any] = json.loads(response.read())
    except OSError as error:
        raise BenchmarkError(f"no answer from http://{http_url}: {error}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise BenchmarkError(f"http://{http_url}{path}: {body.get('error', response.status)}")
    return body


def measure(
    model: str, *, protocol: str, concurrency: int, urls: Mapping[str, str], inputs: Path, window_s: float, folder: Path
) -> Row:
    """Run perf_analyzer once, for three windows.

    Raises:
        BenchmarkError: it failed, or a request did.
    """
    load = ["-m", model, "-i", protocol, "-u", urls[protocol], "--concurrency-range", str(concurrency)]
    before = _statistics(urls["http"])
    report = _perf_analyzer(load, inputs=inputs, window_s=window_s, folder=folder)
    step_ms, queue_ms = _per_step(before, _statistics(urls["http"]))
    return Row(
        model=model,
        protocol=protocol,
        concurrency=concurrency,
        images_per_second=float(report["Inferences/Second"]),
        p50_ms=float(report["p50 latency"]) / 1000,
        p99_ms=float(report["p99 latency"]) / 1000,
        step_ms=step_ms,
        queue_ms=queue_ms,
    )


def _perf_analyzer(load: Sequence[str], *, inputs: Path, window_s: float, folder: Path) -> dict[str, str]:
    """Run the binary and return the one row of its report."""
    binary, libraries = find_perf_analyzer(folder)
    path = inputs.with_suffix(".csv")
    path.unlink(missing_ok=True)
    command = [str(binary), *load, "--input-data", str(inputs), "-f", str(path)]
    # three windows, whose mean is reported; a tight limit would make a busy machine report nothing
    command += [
        "--measurement-interval",
        str(int(window_s * 1000)),
        "--max-trials",
        "3",
        "--stability-percentage",
        "999",
    ]
    environment, limit = _environment(libraries), 60 + 20 * window_s
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"perf_analyzer did not end within {limit:.0f} s: {' '.join(load)}") from error
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    if not rows:
        raise BenchmarkError(f"perf_analyzer failed: {' '.join(load)}\n{done.stdout}{done.stderr}")
    return rows[0]


def _statistics(http_url: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Return model -> kind of time -> (count, nanoseconds) since the server started."""
    stats = _get_json(http_url, "/v2/models/stats")["model_stats"]
    return {s["name"]: {kind: (v["count"], v["ns"]) for kind, v in s["inference_stats"].items()} for s in stats}


def _per_step(before: Any, after: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Return mean milliseconds of compute and of waiting a step, over the requests between two statistics."""
    compute: dict[str, float] = {}
    queue: dict[str, float] = {}
    for step in STEPS:
        name = f"{PUBLIC_MODEL}_{step}"
        kinds = after.get(name, {"success": (0, 0)})
        requests = kinds["success"][0] - before.get(name, kinds)["success"][0]
        if requests == 0:
            continue
        spent = {kind: (kinds[kind][1] - before[name][kind][1]) / requests / 1e6 for kind in kinds}
        compute[step] = spent["compute_input"] + spent["compute_infer"] + spent["compute_output"]
        queue[step] = spent["queue"]
    return compute, queue


def run(
    *, images: Sequence[Path], urls: Mapping[str, str], concurrencies: Sequence[int], window_s: float, folder: Path
) -> list[Row]:
    """Measure both ensembles over both protocols at every concurrency.

    Args:
        images: encoded image files, used in turn.
        urls: protocol to `host:port`.
        concurrencies: requests in flight.
        window_s: seconds of one measurement window.
        folder: where perf_analyzer is, or is to be installed.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="m2f_benchmark_") as temporary:
        for model in MODELS:
            inputs = Path(temporary) / f"{model}.json"
            write_inputs(model, images=images, http_url=urls["http"], path=inputs)
            for protocol in urls:
                for concurrency in concurrencies:
                    rows.append(
                        measure(
                            model,
                            protocol=protocol,
                            concurrency=concurrency,
                            urls=urls,
                            inputs=inputs,
                            window_s=window_s,
                            folder=folder,
                        )
                    )
    return rows


def _machine(http_url: str) -> dict[str, Any]:
    """Return what a figure is worth nothing without."""
    names = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "triton": _get_json(http_url, "/v2")["version"],
    }


def table(rows: Sequence[Row]) -> str:
    """Format the rows for people; a step's share is of the compute time of all steps."""
    lines = [
        f"{'model':<20}{'over':<6}{'in flight':>9}{'images/s':>10}{'p50 ms':>9}{'p99 ms':>9}  server ms a step (share)"
    ]
    for row in rows:
        total = sum(row.step_ms.values()) or 1.0
        steps = "  ".join(f"{step} {ms:.1f} ({ms / total:.0%})" for step, ms in row.step_ms.items())
        lines.append(
            f"{row.model:<20}{row.protocol:<6}{row.concurrency:>9}{row.images_per_second:>10.1f}"
            f"{row.p50_ms:>9.1f}{row.p99_ms:>9.1f}  {steps}"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, help="image files; default: examples/images")
    parser.add_argument("--url", help="HTTP host:port of a running server; default: start one")
    parser.add_argument("--grpc-url", help="gRPC host:port of that server; default: no gRPC rows")
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--config-name", default="cpu", help="configuration to serve (default: %(default)s)")
    parser.add_argument(
        "--outputs", choices=("structured", "all"), default="structured", help="of a server started here"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--window", type=float, default=3.0, help="seconds of a measurement window (default: %(default)s)"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(sys.prefix) / "perf_analyzer", help="where perf_analyzer is"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def _urls(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, str]:
    """Return the addresses to drive; of a server started for the length of `stack` where none is given."""
    if arguments.url:
        return {"http": arguments.url, **({"grpc": arguments.grpc_url} if arguments.grpc_url else {})}
    repository = arguments.model_repository
    if arguments.outputs == "structured":
        repository = stack.enter_context(structured_repository(repository))
    config_name = arguments.config_name or None
    server = stack.enter_context(
        serve(model_repository=repository, config_name=config_name, http_port=0, grpc_port=0, metrics_port=0)
    )
    return {"http": server.http_url, "grpc": server.grpc_url}


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    images = arguments.images or sorted(p for p in (ROOT / "examples/images").glob("*") if p.suffix in SUFFIXES)
    try:
        with ExitStack() as stack:
            urls = _urls(arguments, stack)
            machine = _machine(urls["http"])
            rows = run(
                images=images,
                urls=urls,
                concurrencies=arguments.concurrency,
                window_s=arguments.window,
                folder=arguments.folder,
            )
    except (BenchmarkError, ServeError) as error:
        sys.exit(f"benchmark: {error}")
    if arguments.json:
        print(json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print(", ".join(f"{key} {value}" for key, value in machine.items()), table(rows), sep="\n")


if __name__ == "__main__":
    main()
