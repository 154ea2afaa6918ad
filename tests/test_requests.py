"""What a client may get wrong, on the real server: a clear client error each, and the next good request works."""

import numpy as np
import pytest
from kserve import connect, image_input
from pictures import encode, photo, png_header_only
from tritonclient.utils import InferenceServerException

from m2f.contract import PUBLIC_MODEL, PUBLIC_TENSOR_MODEL
from m2f.rle import encode_mask
from m2f.settings import KEYS

pytestmark = pytest.mark.server

INVALID = {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}


@pytest.fixture(params=["http", "grpc"])
def triton(request, server):
    protocol = connect(server, request.param)
    protocol.invalid = INVALID[request.param]
    return protocol


def refused(triton, model, inputs, message, outputs=("scores",), **parameters):
    """The request is refused as the client's fault with a message that says what was wrong."""
    with pytest.raises(InferenceServerException, match=message) as error:
        triton.infer(model, inputs, outputs, **parameters)
    assert error.value.status() == triton.invalid
    assert triton.infer(PUBLIC_MODEL, image_input(encode(photo())), ["num_instances"])


BAD_IMAGES = {
    "empty": (b"", "the image is empty"),
    "text": (b"not a picture at all", "allowed formats: JPEG, PNG, WebP"),
    "truncated jpeg": (encode(photo(), "jpg")[:-200], "damaged"),
    "truncated png": (encode(photo())[:-200], "damaged"),
    "gif": (encode(photo(), "gif"), "allowed formats: JPEG, PNG, WebP"),
    "huge header": (png_header_only(30000, 30000), "too large"),
    "large header": (png_header_only(10000, 10000), "too large: 10000 x 10000; allowed are 67108864 pixels"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_refused(triton, name):
    data, message = BAD_IMAGES[name]
    refused(triton, PUBLIC_MODEL, image_input(data), message)


def test_a_bad_image_among_good_ones_is_named(triton):
    good = encode(photo())
    refused(triton, PUBLIC_MODEL, image_input(good, b"nonsense", good), "image 1 of 3: not an image")


def test_a_1x1_image_is_an_image(triton):
    got = triton.infer(PUBLIC_MODEL, image_input(encode(photo(1, 1))), ["size", "masks"], score_threshold=0.0)
    assert got["size"].tolist() == [[1, 1]]
    assert got["masks"].shape[2:] == (1, 1)


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (3, 5)])
def test_odd_shapes_are_images(triton, size):
    got = triton.infer(PUBLIC_MODEL, image_input(encode(photo(*size))), ["size"], score_threshold=0.0)
    assert got["size"].tolist() == [list(size)]


def test_dense_masks_beyond_their_limit_are_refused(triton, tensor_inputs):
    inputs = {**tensor_inputs, "ori_shape": np.array([[65_535, 200]], np.int32)}
    refused(
        triton,
        PUBLIC_TENSOR_MODEL,
        inputs,
        "'masks' would take .*ask for 'packed_masks', or 'rle' instead",
        ["masks"],
        score_threshold=0.0,
    )


def test_more_images_than_a_request_may_hold(triton):
    refused(triton, PUBLIC_MODEL, image_input(*[encode(photo())] * 9), "batch-size must be <= 8")


BAD_PARAMETERS = [
    ({"score_thresold": 0.5}, "unknown request parameter 'score_thresold'; allowed: " + ", ".join(KEYS)),
    ({"score_threshold": "high"}, "'score_threshold' must be a number from 0 to 1; got 'high'"),
    ({"score_threshold": 1.5}, "'score_threshold' must be a number from 0 to 1; got 1.5"),
    ({"score_threshold": -1}, "'score_threshold' must be a number from 0 to 1; got -1"),
    ({"iou_threshold": True}, "'iou_threshold' must be a number from 0 to 1; got True"),
    ({"pre_top_k": 0}, "'pre_top_k' must be a whole number >= 1, or -1 for no limit; got 0"),
    ({"keep_top_k": 2.5}, "'keep_top_k' must be a whole number >= 1, or -1 for no limit; got 2.5"),
    ({"max_output_boxes_per_class": "3"}, "'max_output_boxes_per_class' must be a whole number"),
    ({"background_label_id": 80}, "'background_label_id' must be -1"),
    ({"export_postprocess_mask": "no"}, "'export_postprocess_mask' must be true or false; got 'no'"),
    ({"semantics": "yolo"}, "'semantics' must be one of: mmdet, detectron2, huggingface, tao; got 'yolo'"),
    ({"classes": "circle,unicorn"}, "'classes' has no class 'unicorn'; allowed: 0 to 4; names: circle"),
    ({"classes": "5"}, "'classes' has no class '5'; allowed: 0 to 4"),
    ({"class_score_thresholds": "unicorn=0.5"}, "'class_score_thresholds' has no class 'unicorn'"),
]


@pytest.mark.parametrize(("parameters", "message"), BAD_PARAMETERS, ids=str)
def test_a_bad_parameter_is_refused(triton, parameters, message):
    refused(triton, PUBLIC_MODEL, image_input(encode(photo())), message, **parameters)


def test_a_bad_parameter_is_refused_whatever_was_asked_for(triton, tensor_inputs):
    for outputs in (["masks"], ["cls_logits"], ["scores"]):
        refused(triton, PUBLIC_TENSOR_MODEL, tensor_inputs, "unknown request parameter 'x'", outputs, x=1)


@pytest.fixture
def tensor_inputs():
    return {
        "input": np.zeros((1, 256, 256, 3), np.uint8),
        "img_shape": np.array([[256, 200]], np.int32),
        "ori_shape": np.array([[300, 240]], np.int32),
    }


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("img_shape", np.array([[300, 256]], np.int32), "img_shape .* must lie within"),
        ("img_shape", np.array([[0, 0]], np.int32), "img_shape .* must lie within"),
        ("ori_shape", np.array([[0, 5]], np.int32), "ori_shape .* must lie within 1 x 1"),
        (
            "ori_shape",
            np.array([[2_000_000_000, 2_000_000_000]], np.int32),
            "ori_shape .* is too large; allowed are 67108864 pixels",
        ),
        ("img_shape", np.array([[1, 2, 3]], np.int32), "unexpected shape for input 'img_shape'"),
        ("input", np.zeros((1, 256, 256, 4), np.uint8), "unexpected shape for input 'input'"),
        ("input", np.zeros((1, 256, 256, 3), np.float32), "'input' data-type is 'FP32', but model .* expects 'UINT8'"),
        ("input", np.zeros((1, 100, 100, 3), np.uint8), "Got: 100 Expected: 256"),
        ("input", np.zeros((2, 256, 256, 3), np.uint8), "batch"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(triton, tensor_inputs, name, array, message):
    refused(triton, PUBLIC_TENSOR_MODEL, {**tensor_inputs, name: array}, message)


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


@pytest.mark.parametrize("step", ["masks", "packed_masks"])
def test_masks_of_a_size_that_there_is_not_are_refused(triton, step):
    rle = np.array([[b""], [encode_mask(np.ones((10, 10)))]], object)
    inputs = {"rle": rle, "size": np.array([[100, 100], [-10, -10]], np.int32)}
    refused(triton, f"mask2former_{step}", inputs, r"image 1 of 2: size \(-10, -10\) must lie within 1 x 1", [step])


PARAMETER_EFFECTS = [
    ({"keep_top_k": 3}, lambda base, got: got["queries"][0].tolist() == base["queries"][0, :3].tolist()),
    ({"max_output_boxes_per_class": 1}, lambda _, got: len(set(got["labels"][0])) == got["num_instances"][0, 0]),
    ({"classes": "ring,0"}, lambda _, got: set(got["labels"][0]) <= {0, 4}),
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


@pytest.mark.parametrize(("parameters", "holds"), PARAMETER_EFFECTS, ids=lambda value: str(value)[:40])
def test_each_parameter_acts_for_its_request_alone(triton, image_files, parameters, holds):
    inputs = image_input(image_files[0])
    base = triton.infer(PUBLIC_MODEL, inputs, score_threshold=0.0)
    got = triton.infer(PUBLIC_MODEL, inputs, **{"score_threshold": 0.0, **parameters})
    assert holds(base, got)
    again = triton.infer(PUBLIC_MODEL, inputs, score_threshold=0.0)
    np.testing.assert_array_equal(again["scores"], base["scores"])
