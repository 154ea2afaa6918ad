"""The hand-written configurations against the contract, without a server."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from m2f.contract import OUTPUTS, PUBLIC_MODEL, PUBLIC_TENSOR_MODEL
from m2f.limits import MAX_BATCH_SIZE, MAX_IMAGE_BYTES, MAX_INSTANCES, MAX_MAP_BYTES, MAX_MASK_BYTES, MAX_PIXELS
from m2f.preprocess import Preprocessing
from m2f.settings import Settings

REPOSITORY = Path(__file__).parents[1] / "model_repository"
FILES = sorted(REPOSITORY.glob("*/config.pbtxt")) + sorted(REPOSITORY.glob("*/configs/*.pbtxt"))
ENSEMBLES = [PUBLIC_MODEL, PUBLIC_TENSOR_MODEL]
DATATYPES = {"TYPE_FP32": "FP32", "TYPE_INT32": "INT32", "TYPE_UINT8": "UINT8", "TYPE_STRING": "BYTES"}


def read(path):
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def config(model):
    return read(REPOSITORY / model / "config.pbtxt")


def described(tensors):
    return [(t.name, DATATYPES[model_config_pb2.DataType.Name(t.data_type)], tuple(t.dims)) for t in tensors]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_configuration_parses_and_batches(path):
    parsed = read(path)
    assert parsed.name == path.relative_to(REPOSITORY).parts[0]
    assert parsed.max_batch_size == MAX_BATCH_SIZE
    assert not parsed.response_cache.enable  # its key ignores parameters and requested outputs


@pytest.mark.parametrize("model", ENSEMBLES)
def test_the_ensembles_outputs_are_the_contract(model):
    assert described(config(model).output) == [(t.name, t.datatype, t.dims) for t in OUTPUTS]


@pytest.mark.parametrize("model", ENSEMBLES)
def test_outputs_are_leaves_and_inputs_are_not_optional(model):
    """What makes every subset of outputs work: see the head of the configuration."""
    ensemble = config(model)
    read_by_a_step = {value for step in ensemble.ensemble_scheduling.step for value in step.input_map.values()}
    assert not read_by_a_step & {output.name for output in ensemble.output}
    assert not any(tensor.optional for tensor in ensemble.input)


@pytest.mark.parametrize("model", ENSEMBLES)
def test_an_input_that_may_go_unread_is_read_by_the_first_step(model):
    """Triton counts an input that only pruned steps read as an unrequested output of the first step.

    (`tensor_to_prev_step_[input]` is 0 in ensemble_scheduler.cc.) It does no harm where that step reads it itself.
    """
    ensemble = config(model)
    steps = ensemble.ensemble_scheduling.step
    always = {value for step in steps if step.model_name == "mask2former_engine" for value in step.input_map.values()}
    assert {tensor.name for tensor in ensemble.input} <= always | set(steps[0].input_map.values())


@pytest.mark.parametrize("model", ENSEMBLES)
def test_the_steps_make_what_the_contract_says_they_make(model):
    made_by = {
        value: step.model_name for step in config(model).ensemble_scheduling.step for value in step.output_map.values()
    }
    assert {t.name: f"mask2former_{t.group}" for t in OUTPUTS} == {t.name: made_by[t.name] for t in OUTPUTS}


@pytest.mark.parametrize("model", ENSEMBLES)
def test_every_step_maps_all_tensors_of_its_model_with_their_types(model):
    ensemble = config(model)
    types = {t.name: (t.data_type, tuple(t.dims)) for t in ensemble.input}
    used = defaultdict(set)  # a model may be several steps, each for some of its outputs
    for step in ensemble.ensemble_scheduling.step:
        inner = config(step.model_name)
        assert set(step.input_map) == {t.name for t in inner.input}
        used[step.model_name] |= set(step.output_map)
        types |= {
            step.output_map[t.name]: (t.data_type, tuple(t.dims)) for t in inner.output if t.name in step.output_map
        }
    assert used == {name: {t.name for t in config(name).output} for name in used}
    for step in ensemble.ensemble_scheduling.step:
        for tensor in config(step.model_name).input:
            assert types[step.input_map[tensor.name]] == (tensor.data_type, tuple(tensor.dims))
    for tensor in ensemble.output:
        assert types[tensor.name] == (tensor.data_type, tuple(tensor.dims))


def test_the_engines_three_settings_agree():
    engine = config("mask2former_engine")
    assert engine.platform == "tensorrt_plan"
    for name, kind in {"cpu": ("", "python"), "onnxruntime": ("onnxruntime_onnx", "")}.items():
        other = read(REPOSITORY / "mask2former_engine" / "configs" / f"{name}.pbtxt")
        assert (other.platform, other.backend) == kind
        assert (other.input, other.output) == (engine.input, engine.output)
        assert other.HasField("dynamic_batching")
    assert engine.HasField("dynamic_batching")


def test_the_class_names_stand_beside_the_ensemble():
    stated = json.loads(config("mask2former_postprocess").parameters["class_names"].string_value)
    assert (REPOSITORY / "mask2former/labels.txt").read_text().splitlines() == stated


def test_the_shipped_parameters_are_valid():
    def parameters(model):
        return {key: value.string_value for key, value in config(model).parameters.items()}

    Preprocessing.from_repository(parameters("mask2former_preprocess"))
    Settings.from_repository(parameters("mask2former_postprocess"))


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("*/1/model.py")), ids=lambda path: path.parts[-3])
def test_the_models_are_thin(path):
    assert len(path.read_text().splitlines()) <= 60


def test_one_queue_refuses_and_its_model_has_two_instances():
    """The limits of docs/limits.md, which says why: the others would lose wake-ups, and this one without the second."""
    refusing = [parsed for parsed in map(read, FILES) if parsed.dynamic_batching.HasField("default_queue_policy")]
    assert [parsed.name for parsed in refusing] == ["mask2former_preprocess"]
    policy = refusing[0].dynamic_batching.default_queue_policy
    assert policy.max_queue_size == 64
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    assert policy.default_timeout_microseconds == 30_000_000
    assert policy.allow_timeout_override
    assert list(refusing[0].dynamic_batching.preferred_batch_size) == [1]
    assert [group.count for group in refusing[0].instance_group] == [2]


@pytest.mark.parametrize(
    ("limit", "values"),
    [
        ("max_bytes", {MAX_IMAGE_BYTES: ["preprocess"]}),
        ("max_pixels", {MAX_PIXELS: ["preprocess", "postprocess", "panoptic", "semantic"]}),
        ("max_instances", {MAX_INSTANCES: ["postprocess"]}),
        ("max_output_bytes", {MAX_MASK_BYTES: ["masks"], MAX_MAP_BYTES: ["panoptic", "semantic"]}),
    ],
)
def test_limits_are_those_of_the_contract_and_stand_where_the_docs_say(limit, values):
    found = {path.parent.name: read(path).parameters.get(limit) for path in REPOSITORY.glob("*/config.pbtxt")}
    stated = {model: parameter.string_value for model, parameter in found.items() if parameter is not None}
    assert stated == {f"mask2former_{step}": str(value) for value, steps in values.items() for step in steps}
    rows = [line for line in (REPOSITORY.parent / "docs/limits.md").read_text().splitlines() if f"`{limit}`," in line]
    assert len(rows) >= len(values)
    assert all(any(words in row for value in values for words in (f"{value:,}", f"{value >> 20} MiB")) for row in rows)
