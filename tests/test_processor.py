"""The engine of a processor: which library computes, with how many threads and streams; that it is compared first."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx_networks import network

from m2f_backend import processor
from m2f_backend.engine import on_host
from m2f_backend.processor import open_engine

SIZE = (32, 48)
FREE = (None, None)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Writes a graph and its configuration; returns the arguments of `initialize`. There are four cores."""
    monkeypatch.setattr(processor, "usable_cores", lambda: 4)

    def write(*, size=SIZE, layout="uint8_hwc"):
        (tmp_path / "1").mkdir()
        onnx.save(network(layout=layout, size=size), tmp_path / "1/model.onnx")
        sides = [-1 if side is None else side for side in size]
        config = {
            "max_batch_size": 8,
            "input": [
                {"name": "input", "data_type": "TYPE_UINT8", "dims": [*sides, 3]}
                if layout == "uint8_hwc"
                else {"name": "input", "data_type": "TYPE_FP32", "dims": [3, *sides]}
            ],
            "output": [{"name": "cls_logits"}, {"name": "mask_logits"}],
        }
        return {"model_repository": str(tmp_path), "model_version": "1", "model_config": json.dumps(config)}

    return write


@pytest.fixture
def warnings():
    return []


def pixels(count, size=SIZE):
    return {"input": np.random.default_rng(1).integers(0, 256, (count, *size, 3), dtype=np.uint8)}


def compare(found, wanted):
    assert list(found) == ["cls_logits", "mask_logits"]
    for name, tensor in found.items():
        assert np.allclose(on_host(tensor), on_host(wanted[name]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ({}, "openvino, 4 threads, 4 streams"),
        ({"threads": "0", "streams": "0", "engine": "onnxruntime"}, "onnxruntime, 4 threads, 4 streams"),
        ({"threads": "2", "engine": "onnxruntime"}, "onnxruntime, 2 threads, 2 streams"),
        ({"streams": "1", "engine": "openvino"}, "openvino, 4 threads, 1 streams"),
        ({"threads": "3", "streams": "9", "engine": "onnxruntime"}, "onnxruntime, 3 threads, 3 streams"),
        ({"threads": "12", "engine": "onnxruntime"}, "onnxruntime, 12 threads, 8 streams"),  # no batch is larger
    ],
)
def test_threads_and_streams(model, warnings, said, chosen):
    engine, facts = open_engine(model(), said, warnings.append)
    assert chosen == "{engine}, {threads} threads, {streams} streams".format_map(facts)
    assert re.match(r"\d+\.\d+", facts["version"])
    assert facts["precision"] == "float32"
    assert on_host(engine.run(pixels(1))["mask_logits"]).shape == (1, 5, 8, 12)


def test_a_large_graph_has_a_stream_for_four_threads(model, warnings, monkeypatch):
    monkeypatch.setattr(processor, "LARGE", 1)
    _, facts = open_engine(model(), {"threads": "9", "engine": "onnxruntime"}, warnings.append)
    assert facts["streams"] == "2"


@pytest.mark.parametrize("layout", ["uint8_hwc", "float32_chw"])
def test_openvino_answers_as_onnx_runtime(model, warnings, layout):
    args = model(layout=layout)
    engine, facts = open_engine(args, {}, warnings.append)
    wanted, _ = open_engine(args, {"engine": "onnxruntime"}, warnings.append)
    for count in range(1, 9):
        inputs = pixels(count)
        if layout == "float32_chw":
            inputs = {"input": inputs["input"].transpose(0, 3, 1, 2).astype(np.float32) / 64}
        compare(engine.run(inputs), wanted.run(inputs))
    assert facts["engine"] == "openvino"
    assert warnings == []


def test_sizes_in_turn_of_a_graph_of_free_size(model, warnings):
    args = model(size=FREE)
    engine, facts = open_engine(args, {"compiled_shapes": "2"}, warnings.append)
    wanted, _ = open_engine(args, {"engine": "onnxruntime"}, warnings.append)
    for _ in range(3):
        for size in ((32, 32), (32, 64), (64, 32)):
            compare(engine.run(pixels(3, size)), wanted.run(pixels(3, size)))
    assert facts["streams"] == "1"
    assert warnings == []


def wrong(monkeypatch):
    """OpenVINO answers with another number."""
    from m2f_backend.openvino_network import OpenVinoNetwork

    run = OpenVinoNetwork.run
    monkeypatch.setattr(
        OpenVinoNetwork, "run", lambda self, inputs: {name: value * 1.01 for name, value in run(self, inputs).items()}
    )


def test_a_graph_in_half_precision_stays_with_onnx_runtime(model, warnings):
    """OpenVINO computes it in float32: the answers are not the graph's. By name it is obeyed."""
    args = model()
    path = Path(args["model_repository"], "1/model.onnx")
    graph = onnx.load(path)
    for node in graph.graph.node:  # a weight is stored in half precision
        node.input[:] = ["exact" if name == "class_weight" else name for name in node.input]
    graph.graph.node.insert(0, onnx.helper.make_node("Cast", ["class_weight"], ["exact"], to=onnx.TensorProto.FLOAT))
    (weight,) = (tensor for tensor in graph.graph.initializer if tensor.name == "class_weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), "class_weight"))
    onnx.save(graph, path)
    _, facts = open_engine(args, {}, warnings.append)
    assert facts["engine"] == "onnxruntime"
    assert "half precision" in warnings[0]
    assert open_engine(args, {"engine": "openvino"}, warnings.append)[1]["engine"] == "openvino"


def missing(monkeypatch):
    """OpenVINO is not installed."""
    monkeypatch.delitem(sys.modules, "m2f_backend.openvino_network", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)


BROKEN = pytest.mark.parametrize(
    ("breaks", "reason"), [(wrong, "cls_logits differs from ONNX Runtime's"), (missing, "openvino")]
)


@BROKEN
def test_onnx_runtime_serves_what_openvino_cannot(model, warnings, monkeypatch, breaks, reason):
    breaks(monkeypatch)
    engine, facts = open_engine(model(), {}, warnings.append)
    assert facts["engine"] == "onnxruntime"
    assert len(engine.run(pixels(2))["cls_logits"]) == 2
    (warning,) = warnings
    assert reason in warning


@BROKEN
def test_openvino_by_name_is_obeyed_or_refused(model, warnings, monkeypatch, breaks, reason):
    breaks(monkeypatch)
    with pytest.raises(ValueError, match=f"engine: openvino cannot serve this model: .*{re.escape(reason)}"):
        open_engine(model(), {"engine": "openvino"}, warnings.append)


def test_a_size_for_which_openvino_is_wrong_stays_with_onnx_runtime(model, warnings, monkeypatch):
    args = model(size=FREE)
    wanted, _ = open_engine(args, {"engine": "onnxruntime"}, warnings.append)
    wrong(monkeypatch)
    engine, _ = open_engine(args, {"compiled_shapes": "2"}, warnings.append)
    for _ in range(20):
        compare(engine.run(pixels(1)), wanted.run(pixels(1)))
    assert all("(1, 32, 48, 3)" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"engine": "tensorrt"}, "engine: 'tensorrt' is unknown; allowed: auto, openvino, onnxruntime"),
        ({"precision": "float16"}, "precision: 'float16' is unknown; allowed: float32, bfloat16"),
        ({"precision": "bfloat16", "engine": "onnxruntime"}, "precision: bfloat16 needs OpenVINO"),
        ({"threads": "-1"}, "threads: '-1' is no number; allowed: 0 and above"),
        ({"streams": "two"}, "streams: 'two' is no number"),
        ({"compiled_shapes": ""}, "compiled_shapes: '' is no number"),
    ],
)
def test_a_wrong_parameter_is_named(model, warnings, said, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_engine(model(), said, warnings.append)


def test_bfloat16_by_parameter(model, warnings):
    _, facts = open_engine(model(), {"precision": "bfloat16"}, warnings.append)
    assert facts["precision"] in ("bfloat16", "float32")  # float32 where the processor has no instructions for it


def threads():
    return {thread.id for thread in psutil.Process().threads()}


def test_openvino_stays_on_the_cores_that_it_may_use(model, warnings):
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        before = threads()
        engine, _ = open_engine(model(), {}, warnings.append)
        engine.run(pixels(5))
        started = threads() - before
        assert started
        assert all(os.sched_getaffinity(thread) == {max(cores)} for thread in started)
    finally:
        os.sched_setaffinity(0, cores)
