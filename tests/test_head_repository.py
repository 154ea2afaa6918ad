"""A graph with its head behind the real server, beside the other way."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from kserve import connect, image_input
from pictures import encode
from pycocotools import mask as coco
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from m2f.limits import MAX_BATCH_SIZE

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[1]
HEAD_REPOSITORY = ROOT / "export/m2f_export/head_repository"
FILES = sorted(HEAD_REPOSITORY.glob("*/config.pbtxt")) + sorted(HEAD_REPOSITORY.glob("*/configs/*.pbtxt"))
ENGINE_FILES = [path for path in FILES if "head_engine" in str(path)]
OUTPUTS = ("num_instances", "scores", "labels", "boxes", "masks")
TOP_K = 100  # of the export: mmdetection's own


def read(path):
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


@pytest.fixture(scope="module")
def grpc(export_server):
    return connect(export_server, "grpc")


def check_same(head, other, i=0):
    """Row i of the head's answer against the Python postprocess's answer for that image alone."""
    count = int(other["num_instances"][0, 0])
    height, width = other["size"][0].tolist()
    assert head["num_instances"][i].tolist() == [count]
    np.testing.assert_allclose(head["scores"][i, :count], other["scores"][0], atol=1e-4)
    np.testing.assert_array_equal(head["labels"][i, :count], other["labels"][0])
    np.testing.assert_allclose(head["boxes"][i, :count], other["boxes"][0], atol=1)  # a pixel may round to either side
    for mask, counts in zip(head["masks"][i], other["rle"][0], strict=False):
        wanted = coco.decode({"size": [height, width], "counts": counts})
        assert (mask[:height, :width] != wanted).sum() <= 1e-5 * wanted.size + 1
    assert not head["masks"][i, count:].any()
    assert (head["labels"][i, count:] == -1).all()
    return count


@pytest.mark.server
def test_both_ways_find_the_same_instances(grpc, image_files):
    found = 0
    for data in image_files:
        head = grpc.infer("mask2former_head", image_input(data))
        other = grpc.infer("mask2former", image_input(data))
        assert set(head) == set(OUTPUTS)
        assert head["masks"].shape == (1, TOP_K, *other["size"][0])
        found += check_same(head, other)
    assert found > 0


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_request_with_images_of_different_sizes(export_server, image_files, protocol):
    triton = connect(export_server, protocol)
    files = sorted(image_files, key=len)[:3]
    together = triton.infer("mask2former_head", image_input(*files))
    for i, data in enumerate(files):
        alone = triton.infer("mask2former", image_input(data))
        check_same(together, alone, i)


@pytest.mark.server
def test_every_subset_of_outputs(grpc, image_files):
    data = image_input(min(image_files, key=len))
    everything = grpc.infer("mask2former_head", data, OUTPUTS)
    for size in range(1, len(OUTPUTS) + 1):
        for subset in itertools.combinations(OUTPUTS, size):
            got = grpc.infer("mask2former_head", data, subset)
            assert set(got) == set(subset)
            for name in subset:
                np.testing.assert_array_equal(got[name], everything[name], err_msg=name)


@pytest.mark.server
def test_request_parameters_are_refused_not_ignored(grpc, image_files):
    with pytest.raises(
        InferenceServerException, match="'score_threshold': the thresholds of a graph with its head are in it"
    ):
        grpc.infer("mask2former_head", image_input(image_files[0]), score_threshold=0.9)


@pytest.mark.server
def test_an_image_too_large_for_the_graph_is_refused(grpc):
    """100 rows of 5000 x 5000 are more than the 1 GiB that dense masks may take."""
    large = image_input(encode(np.zeros((5000, 5000, 3), np.uint8)))
    with pytest.raises(InferenceServerException, match=r"would take 2500000000 bytes \(1 x 100 x 5000 x 5000\)"):
        grpc.infer("mask2former_head", large)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HEAD_REPOSITORY)))
def test_every_configuration_parses_and_batches(path):
    parsed = read(path)
    assert parsed.name == path.relative_to(HEAD_REPOSITORY).parts[0]
    assert parsed.max_batch_size == MAX_BATCH_SIZE
    assert tuple(output.name for output in parsed.output) == OUTPUTS


def test_the_configurations_of_the_engine_differ_in_the_backend_only():
    parsed = {path.stem: read(path) for path in ENGINE_FILES}
    assert {name: (c.platform, c.backend) for name, c in parsed.items()} == {
        "config": ("tensorrt_plan", ""), "cpu": ("", "python"), "gpu": ("", "python"),
        "onnxruntime": ("onnxruntime_onnx", ""),
    }  # fmt: skip
    for config in parsed.values():
        assert (config.input, config.output) == (parsed["config"].input, parsed["config"].output)
        assert config.model_warmup == parsed["config"].model_warmup


def test_the_steps_of_the_ensemble_fit_together():
    ensemble = read(HEAD_REPOSITORY / "mask2former_head/config.pbtxt")
    engine = read(HEAD_REPOSITORY / "mask2former_head_engine/config.pbtxt")
    preprocess = read(ROOT / "model_repository/mask2former_preprocess/config.pbtxt")
    first, second = ensemble.ensemble_scheduling.step
    assert set(first.output_map) == {tensor.name for tensor in preprocess.output}
    assert set(second.input_map) == {tensor.name for tensor in engine.input}
    assert set(second.input_map.values()) == set(first.output_map.values())
    assert dict(second.output_map) == {name: name for name in OUTPUTS}
    assert ensemble.output == engine.output
    assert engine.input[0] == type(engine.input[0])(
        name="input", data_type=preprocess.output[0].data_type, dims=preprocess.output[0].dims
    )
