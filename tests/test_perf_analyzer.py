"""The serving matrix drives both ensembles of the real server with perf_analyzer."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks import serving
from benchmarks.perf_analyzer import PerfAnalyzerError, Steps, Target, get_json, measure, write_inputs

from m2f.contract import STRUCTURED_OUTPUTS

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "model_repository"


@pytest.fixture(scope="module")
def ensembles():
    return serving.find_ensembles(REPOSITORY, "mask2former")


@pytest.fixture
def target(server):
    return Target(server.http_url, server.grpc_url, server.access.headers)


def write_pictures(path):
    write_inputs(path, [{"image": np.array([image.read_bytes()], object)} for image in serving.IMAGES])


@pytest.mark.server
@pytest.mark.parametrize("transport", ["grpc", pytest.param("shared memory", marks=pytest.mark.more)])
def test_drives_the_server_and_asks_for_every_output(target, ensembles, tmp_path, transport):
    write_pictures(tmp_path / "inputs.json")
    steps = Steps(target.http_url, ensembles["image"])
    row = measure(
        target, "mask2former", inputs=tmp_path / "inputs.json", transport=transport, in_flight=2, batch=2, window_s=0.4
    )
    assert row["images_s"] > 0
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    spent = steps.milliseconds()
    assert list(spent)[::2] == [
        f"{step}_ms" for step in ("preprocess", "engine", "postprocess", "masks", "panoptic", "semantic", "raw")
    ]
    assert min(spent[name] for name in spent if not name.endswith("_queue_ms")) > 0


@pytest.mark.server
def test_a_failing_request_is_an_error(target, tmp_path):
    write_inputs(tmp_path / "inputs.json", [{"image": np.array([b"text"], object)}])
    with pytest.raises(PerfAnalyzerError, match="perf_analyzer failed: -m mask2former -i grpc"):
        measure(target, "mask2former", inputs=tmp_path / "inputs.json", in_flight=1, window_s=0.5)


@pytest.mark.server
@pytest.mark.more
def test_a_cell_of_the_matrix():
    with serving.served(REPOSITORY, "mask2former", outputs="raw", batching="off") as stage:
        (row,) = serving.measured(stage, takes="tensor", transport="http", batch=4, window_s=0.4)
    assert {name.removesuffix("_ms") for name in row} >= {"engine", "engine_queue", "raw"}
    assert "postprocess_ms" not in row


@pytest.mark.parametrize(
    ("outputs", "steps", "inputs"),
    [
        ("structured", ["engine", "postprocess"], ["input", "img_shape", "ori_shape"]),
        ("dense", ["engine", "postprocess", "masks"], ["input", "img_shape", "ori_shape"]),
        ("raw", ["engine", "raw"], ["input"]),  # Triton refuses an ensemble with an input that no step reads
    ],
)
def test_a_copy_declares_what_is_asked_for_and_keeps_what_that_needs(ensembles, tmp_path, *, outputs, steps, inputs):
    serving.copy_repository(REPOSITORY, tmp_path, ensembles, serving.GROUPS[outputs], batching=False)
    config = serving.read(tmp_path / "mask2former_tensor/config.pbtxt")
    assert {output.name for output in config.output} == set(serving.GROUPS[outputs])
    assert [tensor.name for tensor in config.input] == inputs
    kept = {step.model_name.rpartition("_")[2]: step for step in config.ensemble_scheduling.step}
    assert sorted(kept) == sorted(steps)
    read = {tensor for step in kept.values() for tensor in step.input_map.values()} | set(serving.GROUPS[outputs])
    assert {tensor for step in kept.values() for tensor in step.output_map.values()} <= read
    models = {f"mask2former_{step}" for step in [*steps, "preprocess", "tensor"]}
    assert {path.name for path in tmp_path.iterdir()} == models | {"mask2former"}


@pytest.mark.parametrize("batching", [True, False])
def test_a_copy_has_a_dynamic_batcher_or_none(ensembles, tmp_path, batching):
    serving.copy_repository(REPOSITORY, tmp_path, ensembles, STRUCTURED_OUTPUTS, batching=batching)
    engine = tmp_path / "mask2former_engine"
    for path in [engine / "config.pbtxt", *engine.glob("configs/*.pbtxt")]:
        assert serving.read(path).HasField("dynamic_batching") is batching


def test_a_model_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match="has no public model parts; it has mask2former"):
        serving.find_ensembles(REPOSITORY, "parts")


@pytest.mark.parametrize("quick", [True, False])
def test_tables_of_the_matrix(quick):
    part = serving.part(quick=quick)
    rows = [{**cell, "images_s": 10.0 * number} for number, cell in enumerate(part.cells)]
    text = "\n".join(table.markdown() for table in part.tables(rows))
    assert "| outputs | http | grpc | shared memory |" in text
    assert len(part.cells) == (6 if quick else 144)


def test_says_when_there_is_no_server():
    with pytest.raises(PerfAnalyzerError, match=r"no answer from http://127\.0\.0\.1:9"):
        get_json("127.0.0.1:9", "/v2")
