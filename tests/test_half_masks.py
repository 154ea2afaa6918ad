"""Graphs and configurations whose mask logits are in half precision."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from onnx import TensorProto
from onnx_networks import network
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from m2f.contract import PUBLIC_MODEL
from m2f_export.export_errors import ExportError
from m2f_export.half_masks import logits_types, with_half_masks
from m2f_export.repository_writer import copy_template, set_logits_types

TYPES = {"cls_logits": "FP32", "mask_logits": "FP16"}


def computed(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
    return session.run(["cls_logits", "mask_logits"], {"input": pixels})


def test_only_the_masks_are_rounded_and_only_at_the_end():
    model = network()
    before = model.SerializeToString()
    (cls_logits, masks), (same, halves) = computed(model), computed(with_half_masks(model))
    np.testing.assert_array_equal(same, cls_logits)
    np.testing.assert_array_equal(halves, masks.astype(np.float16), strict=True)
    assert model.SerializeToString() == before


def test_the_types_of_a_graph():
    model = network()
    assert logits_types(model) == dict.fromkeys(TYPES, "FP32")
    assert logits_types(with_half_masks(model)) == TYPES
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(ExportError, match="has the type DOUBLE; allowed: FLOAT, FLOAT16"):
        logits_types(model)


def test_every_configuration_states_the_types(tmp_path):
    """Between the steps; what the ensembles and `raw` give stays FP32."""
    copy_template(tmp_path, PUBLIC_MODEL)
    set_logits_types(tmp_path, PUBLIC_MODEL, TYPES)
    read = set()
    for path in tmp_path.rglob("*.pbtxt"):
        config = text_format.Parse(path.read_text(), ModelConfig())
        step = config.name.removeprefix(f"{PUBLIC_MODEL}_")
        for side, tensors in (("input", config.input), ("output", config.output)):
            for tensor in tensors:
                name = tensor.name.removeprefix("inner_")
                if name in TYPES:
                    kind = TYPES[name] if side == "input" or step == "engine" else "FP32"
                    assert DataType.Name(tensor.data_type) == f"TYPE_{kind}", (path, tensor.name)
                    read.add((step, side))
    assert {step for step, side in read if side == "input"} == {"postprocess", "panoptic", "semantic", "raw"}


@pytest.mark.more
@pytest.mark.torch
def test_an_export_is_compared_after_rounding(tmp_path):
    from m2f_export.pipeline import ExportRequest, export_graph

    onnx.save(network(), tmp_path / "net.onnx")
    description = {
        "class_names": ["cat", "dog", "sky"],
        "scale": [96, 64],
        "mean": [120, 110, 100],
        "std": [60, 58, 56],
    }
    (tmp_path / "net.json").write_text(json.dumps(description))
    request = ExportRequest(model=tmp_path / "net.onnx", describe=tmp_path / "net.json", half_masks=True)
    report = export_graph(request, tmp_path / "half.onnx", lambda _: None)
    step = report["comparison"]["steps"][-1]
    assert step["name"] == "half masks"
    assert step["cls_max"] == 0
    assert 0 < step["mask_max"] < 0.05
    assert logits_types(onnx.load(tmp_path / "half.onnx")) == TYPES
