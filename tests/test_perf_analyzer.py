"""The benchmark drives both ensembles of the real server."""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from m2f.contract import STRUCTURED_OUTPUTS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "perf_analyzer.py"
FOLDER = Path(sys.prefix) / "perf_analyzer"
IMAGES = sorted((ROOT / "examples/images").glob("scene_*.jpg"))


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("perf_analyzer_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


DEMANDED = ["masks", "panoptic", "semantic", "raw"]  # perf_analyzer asks for all that is declared


def measured(benchmark, model, **options):
    """A measurement in a window as short as the machine allows."""
    for window_s in (1, 5):
        with contextlib.suppress(benchmark.BenchmarkError):
            return benchmark.measure(model, window_s=window_s, **options)
    return benchmark.measure(model, window_s=20, **options)


@pytest.mark.server
@pytest.mark.parametrize(
    ("model", "protocol", "steps"),
    [
        ("mask2former", "http", ["preprocess", "engine", "postprocess", *DEMANDED]),
        pytest.param("mask2former", "grpc", ["preprocess", "engine", "postprocess", *DEMANDED], marks=pytest.mark.more),
        pytest.param("mask2former_tensor", "http", ["engine", "postprocess", *DEMANDED], marks=pytest.mark.more),
        ("mask2former_tensor", "grpc", ["engine", "postprocess", *DEMANDED]),
    ],
)
def test_drives_both_ensembles(benchmark, server, tmp_path, *, model, protocol, steps):
    urls = {"http": server.http_url, "grpc": server.grpc_url}
    inputs = tmp_path / "inputs.json"
    benchmark.write_inputs(model, images=IMAGES, http_url=server.http_url, path=inputs)
    row = measured(benchmark, model, protocol=protocol, concurrency=2, urls=urls, inputs=inputs, folder=FOLDER)
    assert list(row.step_ms) == steps
    assert min(row.step_ms.values()) > 0
    assert row.images_per_second > 0
    assert 0 < row.p50_ms <= row.p99_ms
    assert f"{model} " in benchmark.table([row])


@pytest.mark.server
def test_a_failing_request_is_an_error(benchmark, server, tmp_path):
    not_an_image = tmp_path / "text.jpg"
    not_an_image.write_text("text")
    inputs = tmp_path / "inputs.json"
    benchmark.write_inputs("mask2former", images=[not_an_image], http_url=server.http_url, path=inputs)
    urls = {"http": server.http_url}
    with pytest.raises(benchmark.BenchmarkError, match="perf_analyzer failed: -m mask2former -i http"):
        benchmark.measure(
            "mask2former", protocol="http", concurrency=1, urls=urls, inputs=inputs, window_s=0.5, folder=FOLDER
        )


def test_structured_repository_keeps_no_step_that_nobody_reads(benchmark):
    with benchmark.structured_repository(ROOT / "model_repository") as repository:
        config = text_format.Parse((repository / "mask2former" / "config.pbtxt").read_text(), ModelConfig())
        assert {path.name for path in repository.iterdir()} == {p.name for p in (ROOT / "model_repository").iterdir()}
    steps = config.ensemble_scheduling.step
    assert [output.name for output in config.output] == list(STRUCTURED_OUTPUTS)
    assert [step.model_name.rpartition("_")[2] for step in steps] == ["preprocess", "engine", "postprocess"]
    read = {tensor for step in steps for tensor in step.input_map.values()} | set(STRUCTURED_OUTPUTS)
    assert {tensor for step in steps for tensor in step.output_map.values()} <= read


def test_says_when_there_is_no_server():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--url", "127.0.0.1:9", *map(str, IMAGES)],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("benchmark: no answer from http://127.0.0.1:9")
