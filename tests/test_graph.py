"""The traced graph: what it computes, and what it leaves free."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from sources import CHECKPOINT, COMMITTED, CONFIG, random_checkpoint, small_config, smooth

from m2f.preprocess import Preprocessing
from m2f_export.export_errors import ExportError
from m2f_export.onnx_files import check_graph, load_onnx, tensor_shapes

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # torch's tracer and mmdet's imports say much

OFFICIAL = [
    "mask2former_r50_8xb2-lsj-50e_coco.py",
    "mask2former_r50_8xb2-lsj-50e_coco-panoptic.py",
    "mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py",
    pytest.param("mask2former_swin-b-p4-w12-384_8xb2-lsj-50e_coco-panoptic.py", marks=pytest.mark.official),
]
IMAGES = sorted((Path(__file__).parents[1] / "examples/images").glob("scene_*"))


@pytest.fixture(scope="module")
def modules():
    from m2f_export import graph
    from m2f_export.sources import mmdetection as mmdet_source

    return graph, mmdet_source


@pytest.fixture(scope="module", params=OFFICIAL)
def small(request, modules, tmp_path_factory):
    """A small model of an official architecture, random weights."""
    config = small_config(tmp_path_factory.mktemp("small"), request.param)
    return modules[1].load_mmdet(config, random_checkpoint(config))


@pytest.fixture(scope="module")
def free(small, modules, tmp_path_factory):
    """The same, exported with batch, height and width free: path and reference."""
    path = tmp_path_factory.mktemp("free") / "model.onnx"
    return path, modules[0].export_onnx(modules[0].with_input(small, layout="uint8_hwc", size=None), path)


def run(path, batch):
    return ort.InferenceSession(path).run(["cls_logits", "mask_logits"], {"input": batch})


def reference(graph, batch):
    import torch

    with torch.inference_mode():
        return [output.numpy() for output in graph(torch.from_numpy(batch))]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (256, 128), (224, 224)])
def test_height_and_width_are_free(free, height, width):
    path, graph = free
    batch = smooth(2, height, width)
    for got, wanted in zip(run(path, batch), reference(graph, batch), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_a_batch_is_its_images_one_by_one(free, size):
    path, graph = free
    batch = smooth(size, 96, 128)
    together = run(path, batch)
    for i in range(size):
        for output, alone in zip(together, reference(graph, batch[i : i + 1]), strict=True):
            np.testing.assert_allclose(output[i], alone[0], atol=1e-3)


def test_the_graph_holds_standard_operators_only(free):
    model = onnx.load(free[0])
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [output.name for output in model.graph.output] == ["cls_logits", "mask_logits"]


def test_what_is_fixed_is_stated(free, small):
    shapes = tensor_shapes(onnx.load(free[0]))
    assert shapes["cls_logits"] == (None, 12, small.num_classes + 1)
    assert shapes["mask_logits"] == (None, 12, None, None)
    assert shapes["input"] == (None, None, None, 3)


def test_pixels_and_floats_give_the_same(modules, tmp_path):
    graph, mmdet_source = modules
    source = mmdet_source.load_mmdet(CONFIG, CHECKPOINT)
    pixels = smooth(2, 256, 256)
    floats = (pixels - np.array(source.preprocessing.mean)) / np.array(source.preprocessing.std)
    batches = {"uint8_hwc": pixels, "float32_chw": floats.transpose(0, 3, 1, 2).astype(np.float32)}
    results = []
    for layout, batch in batches.items():
        described = graph.with_input(source, layout=layout, size=(256, 256))
        graph.export_onnx(described, tmp_path / "model.onnx")
        assert tensor_shapes(onnx.load(tmp_path / "model.onnx")) == {
            "input": (None, *batch.shape[1:]), "cls_logits": (None, 40, 6), "mask_logits": (None, 40, 64, 64),
        }  # fmt: skip
        results.append(run(tmp_path / "model.onnx", batch))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_padding_is_what_normalises_to_zero(modules):
    graph, mmdet_source = modules
    source = mmdet_source.load_mmdet(CONFIG, CHECKPOINT)
    assert graph.with_input(source, layout="uint8_hwc", size=None).preprocessing.pad_value == (124, 116, 104)
    assert graph.with_input(source, layout="float32_chw", size=None).preprocessing.pad_value == (0, 0, 0)


def test_padding_before_normalisation_needs_pixels(modules):
    graph, mmdet_source = modules
    source = mmdet_source.describe_mmdet(CONFIG)
    black = replace(source, preprocessing=replace(source.preprocessing, pad_value=(0, 0, 0)))
    assert graph.with_input(black, layout="uint8_hwc", size=None).preprocessing.pad_value == (0, 0, 0)
    with pytest.raises(ExportError, match=r"pads with \(0, 0, 0\) before it normalises"):
        graph.with_input(black, layout="float32_chw", size=None)


@pytest.mark.parametrize("size", [(250, 256), (256, 16), (0, 0), (-32, 32)])
def test_a_size_that_is_no_multiple_is_refused(modules, size):
    graph, mmdet_source = modules
    with pytest.raises(ExportError, match=r"multiples of 32; got"):
        graph.with_input(mmdet_source.describe_mmdet(CONFIG), layout="uint8_hwc", size=size)


def test_a_network_of_one_size_takes_no_other(modules):
    graph, mmdet_source = modules
    fixed = replace(mmdet_source.describe_mmdet(CONFIG), fixed_size=(640, 640))
    assert graph.with_input(fixed, layout="uint8_hwc", size=None).preprocessing.input_size == (640, 640)
    with pytest.raises(ExportError, match=r"takes \(640, 640\) only"):
        graph.with_input(fixed, layout="uint8_hwc", size=(320, 320))


def test_a_source_that_stretches_keeps_its_size(modules):
    graph, mmdet_source = modules
    source = mmdet_source.describe_mmdet(CONFIG)
    stretched = replace(source.preprocessing, keep_ratio=False, input_size=(384, 384))
    described = graph.with_input(replace(source, preprocessing=stretched), layout="uint8_hwc", size=None)
    assert described.preprocessing.input_size == (384, 384)


def test_a_network_that_cannot_be_traced_is_an_export_error(modules, tmp_path):
    import torch

    class Broken(torch.nn.Module):
        def forward(self, image):  # noqa: ARG002 (the signature of a network)
            raise RuntimeError("needs a compiled operator")

    graph, mmdet_source = modules
    source = replace(mmdet_source.describe_mmdet(CONFIG), network=Broken())
    with pytest.raises(ExportError, match=r"cannot be traced: needs a compiled operator"):
        graph.export_onnx(graph.with_input(source, layout="uint8_hwc", size=(64, 64)), tmp_path / "model.onnx")


def test_the_committed_graph_is_that_of_the_committed_checkpoint(modules, tmp_path):
    """On real images, preprocessed as the server does."""
    graph, mmdet_source = modules
    source = graph.with_input(mmdet_source.load_mmdet(CONFIG, CHECKPOINT), layout="uint8_hwc", size=(256, 256))
    graph.export_onnx(source, tmp_path / "model.onnx")
    shipped = Preprocessing(scale=(256, 256), input_size=(256, 256), pad_value=(124, 116, 104))
    batch = shipped([path.read_bytes() for path in IMAGES])[0]
    for anew, committed in zip(run(tmp_path / "model.onnx", batch), run(COMMITTED, batch), strict=True):
        np.testing.assert_allclose(anew, committed, atol=1e-3)
    assert CHECKPOINT.stat().st_size < 8e6
    assert COMMITTED.stat().st_size < 8e6


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "no graph"), (b"GIF89a", "not an ONNX model"), (b"\x08\x07", "no graph")],
)
def test_what_is_not_onnx_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=message):
        load_onnx(tmp_path / "x.onnx")


def test_custom_operators_are_named():
    node = onnx.helper.make_node("MMCVMultiScaleDeformableAttention", ["x"], ["y"], domain="mmdeploy")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    with pytest.raises(ExportError, match=r"mmdeploy::MMCVMultiScaleDeformableAttention"):
        check_graph(model)
