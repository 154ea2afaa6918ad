"""Rungs held against each other, and the gate."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from m2f.preprocess import Preprocessing
from m2f_export.export_errors import ExportError
from m2f_export.sources.base import Source

pytestmark = pytest.mark.torch

QUERIES, CLASSES, SIDE = 6, 3, 16


@pytest.fixture(scope="module")
def ladder_module():
    from m2f_export import ladder

    return ladder


@pytest.fixture
def ladder(ladder_module):
    """An empty ladder over two pictures of one size."""
    source = Source(
        kind="test", network=None, preprocessing=Preprocessing(scale=(64, 64), input_size=(64, 64)),
        num_classes=CLASSES,
    )  # fmt: skip
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    samples = [ladder_module.Sample(name, b"", pixels + i, (64, 64), (64, 64)) for i, name in enumerate("ab")]
    return ladder_module.Ladder(source, samples)


def logits(shift=0.0, score=0.0, move=0):
    """Two confident instances: query 0 of class 0, query 1 of class 1."""
    classes = np.full((1, QUERIES, CLASSES + 1), -9, np.float32)
    classes[..., -1] = 9
    classes[0, 0], classes[0, 1] = [5, 0, 0, 0], [0, 5, 0, 0]
    classes[0, 0, 0] += score
    masks = np.full((1, QUERIES, SIDE, SIDE), -8, np.float32)
    masks[0, 0, 2:8, 2 + move : 8 + move] = 8
    masks[0, 1, 9:14, 4:14] = 8
    return classes, masks + np.float32(shift)


def always(values):
    return lambda _: values


def test_a_rung_that_cannot_compute_a_picture_is_named(ladder):
    def fails(sample):
        raise ValueError(f"{sample.pixels.shape} is no shape for me")

    with pytest.raises(ExportError, match=r"ONNX Runtime cannot compute a: \(1, 64, 64, 3\) is no shape for me"):
        ladder.climb("ONNX Runtime", fails)


def test_equal_rungs_differ_by_nothing(ladder):
    ladder.climb("first", always(logits()))
    ladder.climb("second", always(logits()))
    (step,) = ladder.steps
    assert (step.cls_max, step.mask_max, step.mask_mean, step.score_max) == (0, 0, 0, 0)
    assert (step.instances, step.matched, step.extra, step.iou) == (4, 4, 0, 1)
    assert ladder.report()["first"] == "first"
    assert ladder.report()["images"] == ["a", "b"]


def test_differences_are_those_of_the_arrays(ladder):
    ladder.climb("first", always(logits()))
    ladder.climb("second", always(logits(shift=5e-5, score=2e-4)))
    (step,) = ladder.steps
    assert step.mask_max == pytest.approx(5e-5, rel=2e-2)
    assert step.mask_mean == pytest.approx(5e-5, rel=2e-2)
    assert step.cls_max == pytest.approx(2e-4, rel=1e-2)
    assert step.cls_mean == pytest.approx(2e-4 / (QUERIES * (CLASSES + 1)), rel=1e-2)
    assert 0 < step.score_mean <= step.score_max < 1e-4


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (logits(shift=0.01), r"drift drifts .*mask_logits differ by 1\.0e-02 on average, allowed 1e-04"),
        (
            logits(score=-3),
            r"cls_logits differ by 3\.0e\+00 at most, allowed 5e-02.*scores differ by .* on average, allowed 1e-04",
        ),
        (logits(score=-15), r"6 of 4 instances have no partner, allowed 0%"),
        (logits(move=1), r"mean mask IoU 0\.\d+, allowed 0\.999"),
        ((logits()[0] * np.nan, logits()[1]), "not all finite"),
        ((logits()[0], logits()[1][:, :, ::2]), r"mask_logits is \(1, 6, 8, 16\), before it was \(1, 6, 16, 16\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_rung_that_drifts_is_refused(ladder, after, message):
    ladder.climb("first", always(logits()))
    with pytest.raises(ExportError, match=message):
        ladder.climb("drift", always(after))


def test_half_precision_is_judged_by_its_instances(ladder, ladder_module):
    ladder.climb("first", always(logits()))
    ladder.climb("fp16", always(logits(shift=0.05)), ladder_module.HALF)
    with pytest.raises(ExportError, match=r"mean mask IoU"):
        ladder.climb("worse", always(logits(move=1)), ladder_module.HALF)


def test_an_instance_too_many_has_no_partner(ladder):
    more = logits()
    more[0][0, 2] = [0, 0, 5, 0]
    more[1][0, 2, 2:5, 10:14] = 8
    ladder.climb("first", always(logits()))
    with pytest.raises(ExportError, match="2 of 4 instances have no partner"):
        ladder.climb("more", always(more))


def graph_of(nodes, outputs, initializers=()):
    info = [helper.make_tensor_value_info("input", TensorProto.UINT8, [None, 64, 64, 3])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", info, outputs, initializers), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    return model


def baked_graph(batch):
    """Both outputs are means over the reshaped input: `batch` is what the Reshape makes of N, 0 leaves it."""
    nodes = [
        helper.make_node("Cast", ["input"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], ["cells"]),
        helper.make_node("ReduceMean", ["cells"], ["cls_logits"], axes=[3], keepdims=0),
        helper.make_node("Identity", ["cells"], ["mask_logits"]),
    ]
    outputs = [
        helper.make_tensor_value_info("cls_logits", TensorProto.FLOAT, [None, None, None]),
        helper.make_tensor_value_info("mask_logits", TensorProto.FLOAT, [None, None, None, None]),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [batch, 64, 64, 3])
    return graph_of(nodes, outputs, [shape])


def test_a_batch_that_was_traced_in_is_found(ladder, ladder_module, tmp_path):
    onnx.save(baked_graph(0), tmp_path / "free.onnx")
    assert ladder_module.check_batches(tmp_path / "free.onnx", ladder.source.preprocessing) == (2, 5, 8)
    onnx.save(baked_graph(1), tmp_path / "baked.onnx")
    with pytest.raises(ExportError, match=r"baked\.onnx refuses a batch of 2"):
        ladder_module.check_batches(tmp_path / "baked.onnx", ladder.source.preprocessing)
    onnx.save(baked_graph(3), tmp_path / "baked.onnx")
    with pytest.raises(ExportError, match=r"baked\.onnx refuses a batch of 1"):
        ladder_module.check_batches(tmp_path / "baked.onnx", ladder.source.preprocessing)


def test_large_inputs_are_compared_in_small_batches(ladder, ladder_module, tmp_path):
    onnx.save(baked_graph(0), tmp_path / "free.onnx")
    tried = ladder_module.check_batches(tmp_path / "free.onnx", ladder.source.preprocessing, pixels_at_once=6 * 64 * 64)
    assert tried == (2, 5)


def test_a_batch_that_leaks_between_images_is_found(ladder, ladder_module, tmp_path):
    leaky = baked_graph(0)
    leaky.graph.node[2].CopyFrom(helper.make_node("ReduceMean", ["cells"], ["means"], axes=[3], keepdims=0))
    leaky.graph.node.append(helper.make_node("ReduceMax", ["means"], ["largest"], axes=[0], keepdims=1))
    leaky.graph.node.append(helper.make_node("Sub", ["means", "largest"], ["cls_logits"]))
    onnx.save(leaky, tmp_path / "leaky.onnx")
    with pytest.raises(ExportError, match=r"cls_logits of a batch of 2"):
        ladder_module.check_batches(tmp_path / "leaky.onnx", ladder.source.preprocessing)


def test_pictures_are_read_as_the_server_reads_them(ladder_module, ladder, tmp_path):
    samples = ladder_module.read_samples(ladder.source, [])
    assert len({sample.ori_shape for sample in samples}) == len(samples) >= 4
    assert all(sample.pixels.shape == (1, 64, 64, 3) for sample in samples)
    (tmp_path / "x.png").write_bytes(samples[0].encoded)
    (again,) = ladder_module.read_samples(ladder.source, [tmp_path / "x.png"])
    np.testing.assert_array_equal(again.pixels, samples[0].pixels)


@pytest.mark.parametrize("content", [None, b"GIF89a"])
def test_a_picture_that_cannot_be_read_is_named(ladder_module, ladder, tmp_path, content):
    if content:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ExportError, match=r"x\.png: "):
        ladder_module.read_samples(ladder.source, [tmp_path / "x.png"])


def test_a_tolerance_can_be_given(ladder, ladder_module):
    ladder.climb("first", always(logits()))
    ladder.climb("second", always(logits(shift=0.001)), replace(ladder_module.EXACT, mean=0.1))
    assert len(ladder.steps) == 1
