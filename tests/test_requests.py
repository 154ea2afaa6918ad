"""What the request parameters do, and what single steps refuse, on the real server; `test_bad_inputs` has the rest."""

import numpy as np
import pytest
from kserve import connect, image_input
from pictures import encode, photo
from tritonclient.utils import InferenceServerException

from m2f.contract import PUBLIC_MODEL, PUBLIC_TENSOR_MODEL
from m2f.rle import encode_mask

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def triton(server):
    return connect(server, "grpc")


def refused(triton, model, inputs, message, outputs=("scores",), **parameters):
    """The request is refused as the client's fault with a message that says what was wrong."""
    with pytest.raises(InferenceServerException, match=message) as error:
        triton.infer(model, inputs, outputs, **parameters)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 5)])
def test_odd_shapes_are_images(triton, size):
    got = triton.infer(PUBLIC_MODEL, image_input(encode(photo(*size))), ["size", "masks"], score_threshold=0.0)
    assert got["size"].tolist() == [list(size)]
    assert got["masks"].shape[2:] == size


def test_a_bad_parameter_is_refused_whatever_was_asked_for(triton):
    tensor_inputs = {
        "input": np.zeros((1, 256, 256, 3), np.uint8),
        "img_shape": np.array([[256, 200]], np.int32),
        "ori_shape": np.array([[300, 240]], np.int32),
    }
    for outputs in (["masks"], ["cls_logits"], ["scores"]):
        refused(triton, PUBLIC_TENSOR_MODEL, tensor_inputs, "unknown request parameter 'x'", outputs, x=1)


def _logits(queries=1, columns=2, side=1):
    shapes = {name: np.full((1, 2), side, np.int32) for name in ("img_shape", "ori_shape")}
    zeros = np.zeros((1, queries, columns), np.float32)
    return {"cls_logits": zeros, "mask_logits": np.zeros((1, queries, 1, 1), np.float32), **shapes}


@pytest.mark.parametrize("step", ["postprocess", "panoptic", "semantic"])
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (_logits(columns=0), "must have from 1 to 1000 queries, and columns for from 1 to 10000 classes"),
        (_logits(columns=1), "must have from 1 to 1000 queries, and columns for from 1 to 10000 classes"),
        (_logits(queries=1001), "must have from 1 to 1000 queries"),
        ({**_logits(queries=300), "ori_shape": np.full((1, 2), 8192, np.int32)}, "the request is too much work"),
    ],
    ids=["no columns", "no class", "queries", "work"],
)
def test_a_step_by_itself_refuses_logits_that_are_none_or_too_much(triton, step, inputs, message):
    output = {"postprocess": "num_instances"}.get(step, step)
    refused(triton, f"mask2former_{step}", inputs, message, [output])


def test_masks_of_a_size_that_there_is_not_are_refused(triton):
    rle = np.array([[b""], [encode_mask(np.ones((10, 10)))]], object)
    inputs = {"rle": rle, "size": np.array([[100, 100], [-10, -10]], np.int32)}
    for output in ("masks", "packed_masks"):
        refused(triton, "mask2former_masks", inputs, r"image 1 of 2: size \(-10, -10\) must lie within 1 x 1", [output])


PARAMETER_EFFECTS = [
    ({"keep_top_k": 3}, lambda base, got: got["queries"][0].tolist() == base["queries"][0, :3].tolist()),
    ({"max_output_boxes_per_class": 1}, lambda _, got: len(set(got["labels"][0])) == got["num_instances"][0, 0]),
    ({"classes": "ring,0"}, lambda _, got: set(got["labels"][0]) <= {0, 4}),
    ({"classes": '["ring", 0]'}, lambda _, got: set(got["labels"][0]) == {0, 4}),
    (
        {"class_score_thresholds": "circle=1,1=0.9"},
        lambda _, got: not (got["labels"] == 0).any() and (got["scores"][got["labels"] == 1] >= 0.9).all(),
    ),
    (
        {"semantics": "detectron2"},
        lambda base, got: not got["boxes"].any() and (got["rle"] == base["rle"]).all(),
    ),
    (
        {"semantics": "huggingface"},
        lambda base, got: 0 < got["num_instances"][0, 0] < base["num_instances"][0, 0],
    ),
    ({"classes": "circle", "keep_top_k": 1}, lambda _, got: got["labels"][0].tolist() == [0]),
    ({"pre_top_k": 5}, lambda _, got: got["num_instances"][0, 0] <= 5),
    ({"score_threshold": 0.9}, lambda _, got: (got["scores"] >= 0.9).all()),
    ({"iou_threshold": 0.0}, lambda base, got: got["num_instances"][0, 0] < base["num_instances"][0, 0]),
    ({"export_postprocess_mask": False}, lambda _, got: set(got["rle"][0]) == {b""} and got["masks"].shape[1] == 0),
    ({"background_label_id": 0}, lambda base, got: got["scores"].tolist() != base["scores"].tolist()),
]


EFFECT_OUTPUTS = ["num_instances", "scores", "labels", "boxes", "queries", "rle", "masks"]


@pytest.fixture(scope="module")
def base(triton, image_files):
    return triton.infer(PUBLIC_MODEL, image_input(image_files[0]), EFFECT_OUTPUTS, score_threshold=0.0)


@pytest.mark.parametrize(
    ("parameters", "holds"), PARAMETER_EFFECTS, ids=[" ".join(parameters) for parameters, _ in PARAMETER_EFFECTS]
)
def test_each_parameter_has_its_effect(triton, image_files, base, parameters, holds):
    given = {"score_threshold": 0.0, **parameters}
    assert holds(base, triton.infer(PUBLIC_MODEL, image_input(image_files[0]), EFFECT_OUTPUTS, **given))


def test_parameters_act_for_their_request_alone(triton, image_files, base):
    for _ in range(2):
        again = triton.infer(PUBLIC_MODEL, image_input(image_files[0]), ["scores"], score_threshold=0.0)
        np.testing.assert_array_equal(again["scores"], base["scores"])
        triton.infer(PUBLIC_MODEL, image_input(image_files[0]), ["scores"], score_threshold=0.9, keep_top_k=1)
