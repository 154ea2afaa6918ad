"""The traced graph: what it computes, and what it leaves free."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from sources import CHECKPOINT, COMMITTED, CONFIG, random_checkpoint, small_config, smooth

torch = pytest.importorskip("torch")

from m2f_export import graph  # noqa: E402
from m2f_export.export_errors import ExportError  # noqa: E402
from m2f_export.onnx_files import check_graph, load_onnx, open_session, tensor_shapes  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # torch's tracer and mmdet's imports say much

OFFICIAL = [
    "mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py",  # the one whose batch mmdetection bakes in
    pytest.param("mask2former_r50_8xb2-lsj-50e_coco.py", marks=pytest.mark.more),
    pytest.param("mask2former_r50_8xb2-lsj-50e_coco-panoptic.py", marks=pytest.mark.more),
    pytest.param("mask2former_swin-b-p4-w12-384_8xb2-lsj-50e_coco-panoptic.py", marks=pytest.mark.official),
]


@pytest.fixture(scope="module")
def described():
    """The embedded configuration, without its network."""
    from m2f_export.sources.mmdetection import describe_mmdet

    return describe_mmdet(CONFIG)


@pytest.fixture(scope="module", params=OFFICIAL)
def small(request, tmp_path_factory):
    """A small model of an official architecture, random weights."""
    from m2f_export.sources.mmdetection import load_mmdet

    config = small_config(tmp_path_factory.mktemp("small"), request.param)
    return load_mmdet(config, random_checkpoint(config))


@pytest.fixture(scope="module")
def free(small, tmp_path_factory):
    """The same, exported with batch, height and width free: the file, functions to run it and its reference."""
    path = tmp_path_factory.mktemp("free") / "model.onnx"
    network = graph.export_onnx(graph.with_input(small, layout="uint8_hwc", size=None), path)

    def reference(batch):
        with torch.inference_mode():
            return [output.numpy() for output in network(torch.from_numpy(batch))]

    return path, runner(path), reference


def runner(path):
    """A function that runs a graph."""
    session = open_session(path)
    return lambda batch: session.run(["cls_logits", "mask_logits"], {"input": batch})


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (256, 128), (224, 224)])
def test_height_and_width_are_free(free, height, width):
    _, run, reference = free
    batch = smooth(2, height, width)
    for got, wanted in zip(run(batch), reference(batch), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_a_batch_is_its_images_one_by_one(free):
    _, run, reference = free
    batch = smooth(8, 96, 128)
    alone = [reference(image[None]) for image in batch]
    for size in (1, 2, 5, 8):
        for together, single in zip(run(batch[:size]), zip(*alone[:size], strict=True), strict=True):
            np.testing.assert_allclose(together, np.concatenate(single), atol=1e-3)


def test_the_graph_holds_standard_operators_only(free):
    model = onnx.load(free[0])
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [output.name for output in model.graph.output] == ["cls_logits", "mask_logits"]


def test_the_graph_is_rewritten(free):
    kinds = {node.op_type for node in onnx.load(free[0]).graph.node}
    assert "GridSample" in kinds
    assert not {"Einsum", "InstanceNormalization"} & kinds


def test_what_is_fixed_is_stated(free, small):
    shapes = tensor_shapes(onnx.load(free[0]))
    assert shapes["cls_logits"] == (None, 12, small.num_classes + 1)
    assert shapes["mask_logits"] == (None, 12, None, None)
    assert shapes["input"] == (None, None, None, 3)


def test_pixels_and_floats_give_the_same(tmp_path):
    """The committed graph takes pixels; the same model is exported for floats."""
    from m2f_export.sources.mmdetection import load_mmdet

    source = load_mmdet(CONFIG, CHECKPOINT)
    pixels = smooth(2, 256, 256)
    floats = (pixels - np.array(source.preprocessing.mean)) / np.array(source.preprocessing.std)
    floats = floats.transpose(0, 3, 1, 2).astype(np.float32)
    path = tmp_path / "model.onnx"
    graph.export_onnx(graph.with_input(source, layout="float32_chw", size=(256, 256)), path)
    for file, batch in ((COMMITTED, pixels), (path, floats)):
        assert tensor_shapes(onnx.load(file)) == {
            "input": (None, *batch.shape[1:]), "cls_logits": (None, 40, 6), "mask_logits": (None, 40, 64, 64),
        }  # fmt: skip
    for one, other in zip(runner(COMMITTED)(pixels), runner(path)(floats), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_padding_is_what_normalises_to_zero(described):
    assert graph.with_input(described, layout="uint8_hwc", size=None).preprocessing.pad_value == (124, 116, 104)
    assert graph.with_input(described, layout="float32_chw", size=None).preprocessing.pad_value == (0, 0, 0)


def test_padding_before_normalisation_needs_pixels(described):
    black = replace(described, preprocessing=replace(described.preprocessing, pad_value=(0, 0, 0)))
    assert graph.with_input(black, layout="uint8_hwc", size=None).preprocessing.pad_value == (0, 0, 0)
    with pytest.raises(ExportError, match=r"pads with \(0, 0, 0\) before it normalises"):
        graph.with_input(black, layout="float32_chw", size=None)


@pytest.mark.parametrize("size", [(250, 256), (256, 16), (0, 0), (-32, 32)])
def test_a_size_that_is_no_multiple_is_refused(described, size):
    with pytest.raises(ExportError, match=r"multiples of 32; got"):
        graph.with_input(described, layout="uint8_hwc", size=size)


def test_a_network_of_one_size_takes_no_other(described):
    fixed = replace(described, fixed_size=(640, 640))
    assert graph.with_input(fixed, layout="uint8_hwc", size=None).preprocessing.input_size == (640, 640)
    with pytest.raises(ExportError, match=r"takes \(640, 640\) only"):
        graph.with_input(fixed, layout="uint8_hwc", size=(320, 320))


def test_a_source_that_stretches_keeps_its_size(described):
    stretched = replace(described.preprocessing, keep_ratio=False, input_size=(384, 384))
    source = graph.with_input(replace(described, preprocessing=stretched), layout="uint8_hwc", size=None)
    assert source.preprocessing.input_size == (384, 384)


def test_a_network_that_cannot_be_traced_is_an_export_error(described, tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, image):  # noqa: ARG002 (the signature of a network)
            raise RuntimeError("needs a compiled operator")

    source = replace(described, network=Broken())
    with pytest.raises(ExportError, match=r"cannot be traced: needs a compiled operator"):
        graph.export_onnx(graph.with_input(source, layout="uint8_hwc", size=(64, 64)), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "is empty"), (b"GIF89a", "not an ONNX model"), (b"\x08\x07", "no graph")],
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
