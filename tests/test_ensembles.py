"""What is read from an ensemble's configuration, in every form that Triton gives it."""

from pathlib import Path

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from m2f.contract import HEAD, HEAD_ENGINE, STEPS, TENSOR, model_name
from m2f.ensembles import Ensemble, read_ensemble, steps_for

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "model_repository", ROOT / "export/m2f_export/head_repository")


def config(model):
    folder = next(folder for folder in FOLDERS if (folder / model).is_dir())
    text = (folder / model / "config.pbtxt").read_text().replace("mask2former", "parts")
    return json_format.MessageToDict(
        text_format.Parse(text, model_config_pb2.ModelConfig()), preserving_proto_field_name=True
    )


def test_the_public_ensemble_under_any_name():
    found = read_ensemble(config("mask2former"))
    assert (found.name, found.public) == ("parts", True)
    assert found.steps == tuple(model_name("parts", step) for step in STEPS)
    assert (found.preprocess, found.engine) == ("parts_preprocess", "parts_engine")
    assert found.postprocess == "parts_postprocess"


def test_the_tensor_ensemble_takes_no_images():
    found = read_ensemble(config("mask2former_tensor"))
    assert (found.name, found.public) == (model_name("parts", TENSOR), False)
    assert set(found.steps) == {model_name("parts", step) for step in STEPS[1:]}
    assert (found.preprocess, found.engine, found.postprocess) == (None, "parts_engine", "parts_postprocess")


def test_a_head_has_its_own_engine_and_no_postprocess():
    found = read_ensemble(config("mask2former_head"))
    engine = model_name("parts", HEAD_ENGINE)
    steps = ("parts_preprocess", engine)
    assert found == Ensemble(model_name("parts", HEAD), True, steps, "parts_preprocess", engine, None)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_no_ensemble(step):
    assert read_ensemble(config(f"mask2former_{step}")) is None


def step(model, takes, makes):
    return {"model_name": model, "input_map": dict.fromkeys(takes, "x"), "output_map": dict.fromkeys(makes, "y")}


IMAGE = {"name": "image", "data_type": "TYPE_STRING", "dims": ["1"]}
FOREIGN = {
    "nothing said": ({}, None),
    "no steps": ({"name": "a", "platform": "ensemble", "ensemble_scheduling": {}}, None),
    "a classifier of images": (
        {
            "name": "a", "input": [IMAGE], "output": [{"name": "logits", "data_type": "TYPE_FP32"}],
            "ensemble_scheduling": {
                "step": [step("decode", ["image"], ["pixels"]), step("net", ["pixels"], ["logits"])]
            },
        },
        Ensemble("a", False, ("decode", "net"), "decode", None, None),
    ),
    "pixels called image": (
        {
            "name": "a", "input": [{**IMAGE, "data_type": "TYPE_UINT8"}],
            "output": [{"name": "num_instances", "data_type": "TYPE_INT32"}],
            "ensemble_scheduling": {"step": [step("net", ["image"], ["num_instances"])]},
        },
        Ensemble("a", False, ("net",), "net", None, None),
    ),
    "one model twice, without maps": (
        {"name": "a", "ensemble_scheduling": {"step": [{"model_name": "net"}, {"model_name": "net"}]}},
        Ensemble("a", False, ("net",), None, None, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("found", "expected"), FOREIGN.values(), ids=list(FOREIGN))
def test_a_foreign_model_is_read_as_it_is(found, expected):
    assert read_ensemble(found) == expected


@pytest.mark.parametrize(
    ("outputs", "steps"),
    [
        (["scores", "rle"], ["preprocess", "engine", "postprocess"]),
        (["masks"], ["preprocess", "engine", "postprocess", "masks"]),
        (["semantic"], ["preprocess", "engine", "semantic"]),
        (["scores", "cls_logits"], ["preprocess", "engine", "postprocess", "raw"]),
        (["nothing"], []),
        ([], []),
    ],
)
def test_the_steps_that_a_request_runs(outputs, steps):
    assert steps_for(config("mask2former"), outputs) == tuple(model_name("parts", step) for step in steps)


def test_a_step_runs_no_steps():
    assert steps_for(config("mask2former_raw"), ["cls_logits"]) == ()
