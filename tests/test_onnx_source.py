"""An ONNX that exists already. MMDeploy's own exporter makes it here, from a deploy config of the usual kind."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mmdeploy_exporter import mmdeploy_export
from onnx import TensorProto, helper
from onnx_networks import network
from sources import CHECKPOINT, CONFIG, smooth

from m2f_export.export_errors import ExportError

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # torch's tracer and mmdet's imports say much


@pytest.fixture(scope="module", params=["onnxruntime", pytest.param("tensorrt", marks=pytest.mark.more)])
def of_a_backend(request, mmdeploys_onnx, tmp_path_factory):
    """What MMDeploy makes for each backend."""
    if request.param == "onnxruntime":
        return mmdeploys_onnx
    return mmdeploy_export(tmp_path_factory.mktemp("mmdeploy"), request.param)


@pytest.fixture(scope="module")
def described():
    from m2f_export.sources.mmdetection import describe_mmdet

    return describe_mmdet(CONFIG)


@pytest.fixture(scope="module")
def adopt():
    from m2f_export.sources.onnx_model import adopt_onnx

    return adopt_onnx


def test_mmdeploys_own_graph_needs_a_plugin(of_a_backend):
    """The ground of these tests: were it plain, there would be nothing to do."""
    model = onnx.load(of_a_backend)
    assert "grid_sampler" in {node.op_type for node in model.graph.node if node.domain == "mmdeploy"}
    with pytest.raises(Exception, match="mmdeploy"):
        ort.InferenceSession(of_a_backend)


def test_mmdeploys_graph_computes_what_pytorch_does(of_a_backend, described, adopt, tmp_path):
    import torch

    from m2f_export.sources.mmdetection import load_mmdet

    source = adopt(of_a_backend, described, tmp_path / "model.onnx")
    assert source.facts.mask_stride == 1
    assert source.preprocessing.layout == "float32_chw"
    assert source.preprocessing.input_size is None
    assert source.preprocessing.mean == (124.0, 116.0, 104.0)
    pixels = (smooth(2, 256, 256) - np.array(source.preprocessing.mean)) / np.array(source.preprocessing.std)
    batch = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    got = ort.InferenceSession(tmp_path / "model.onnx").run(["cls_logits", "mask_logits"], {"input": batch})
    with torch.inference_mode():
        classes, masks = load_mmdet(CONFIG, CHECKPOINT).network(torch.from_numpy(batch))
        masks = torch.nn.functional.interpolate(masks, (256, 256), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(got[0], classes.numpy(), atol=1e-3)
    np.testing.assert_allclose(got[1], masks.numpy(), atol=1e-3)


def graph(
    *, given="input", kind=TensorProto.FLOAT, shape=(None, 3, 64, 64), outputs=("cls_logits", "mask_logits"), nodes=()
):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(shape)) for name in outputs]
    inputs = [helper.make_tensor_value_info(given, kind, shape)]
    made = [helper.make_node("Cast", [given], [name], to=TensorProto.FLOAT) for name in outputs]
    model = helper.make_model(helper.make_graph([*made, *nodes], "g", inputs, values), opset_imports=[
        helper.make_opsetid("", 17), helper.make_opsetid("mmdeploy", 1)])  # fmt: skip
    model.ir_version = 8
    return model


PLUGIN = helper.make_node("MMCVMultiScaleDeformableAttention", ["input"], ["attended"], domain="mmdeploy")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph(given="image"), r"takes image and gives cls_logits, mask_logits; allowed: takes input"),
        (graph(outputs=("dets", "labels")), r"gives dets, labels; allowed: .*cls_logits, mask_logits .*output_names"),
        (graph(nodes=[PLUGIN]), r"custom operators: mmdeploy::MMCVMultiScaleDeformableAttention"),
        (
            graph(kind=TensorProto.FLOAT16),
            r"input is FLOAT16 .*; allowed: UINT8 \[N, H, W, 3\] or FLOAT \[N, 3, H, W\]",
        ),
        (graph(shape=(None, 1, 64, 64)), r"input is FLOAT \[None, 1, 64, 64\]; allowed"),
        (graph(shape=(None, 64)), r"input is FLOAT \[None, 64\]; allowed"),
        (graph(shape=(1, 3, 64, 64)), r"input has a fixed batch of 1; allowed: a free first axis"),
        (network(classes=80), r"cls_logits are \[1, 5, 81\]; allowed: \[1, 5, 6\], for the 5 queries .* 5 classes"),
    ],
)
def test_a_graph_that_cannot_be_served_is_named(described, adopt, tmp_path, model, message):
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ExportError, match=message):
        adopt(tmp_path / "x.onnx", described, tmp_path / "model.onnx")


def test_the_stride_is_measured(described, adopt, tmp_path):
    onnx.save(network(size=(64, 96), stride=8, classes=5), tmp_path / "x.onnx")
    source = adopt(tmp_path / "x.onnx", described, tmp_path / "model.onnx")
    assert (source.facts.mask_stride, source.preprocessing.input_size) == (8, (64, 96))
