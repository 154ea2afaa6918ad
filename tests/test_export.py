"""The embedded checkpoint, exported anew."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from m2f.preprocess import Preprocessing

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # torch's tracer and mmdet's imports say much

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples/shapes/mask2former_shapes.py"
CHECKPOINT = ROOT / "examples/shapes/mask2former_shapes.pth"
COMMITTED = ROOT / "model_repository/mask2former_engine/1/model.onnx"
IMAGES = sorted((ROOT / "examples/images").glob("scene_*"))


@pytest.fixture(scope="module")
def exporter():
    from m2f_export import mmdet_onnx

    return mmdet_onnx


@pytest.fixture(scope="module")
def exported(exporter, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    exporter.export_onnx(exporter.load_model(CONFIG, CHECKPOINT), path, size=(256, 256))
    assert list(path.parent.iterdir()) == [path]  # no draft stays
    return path


@pytest.fixture(scope="module")
def batch():
    """Real images, preprocessed as the server does."""
    preprocessing = Preprocessing(scale=(256, 256), input_size=(256, 256), pad_value=(124, 116, 104))
    return preprocessing([path.read_bytes() for path in IMAGES])[0]


def run(path, batch):
    return ort.InferenceSession(path).run(["cls_logits", "mask_logits"], {"input": batch})


def test_the_committed_graph_is_that_of_the_committed_checkpoint(exported, batch):
    for anew, committed in zip(run(exported, batch), run(COMMITTED, batch), strict=True):
        np.testing.assert_allclose(anew, committed, atol=1e-3)


def test_the_batch_is_dynamic(batch):
    together = run(COMMITTED, np.concatenate([batch, batch[::-1]]))
    for i, image in enumerate(np.concatenate([batch, batch[::-1]])):
        for part, alone in zip(together, run(COMMITTED, image[None]), strict=True):
            np.testing.assert_allclose(part[i], alone[0], atol=1e-3)


def test_the_graph_holds_standard_operators_only_and_is_small(exported):
    graph = onnx.load(COMMITTED).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert [output.name for output in graph.output] == ["cls_logits", "mask_logits"]
    assert exported.stat().st_size < 8e6
    assert CHECKPOINT.stat().st_size < 8e6


def test_a_checkpoint_of_another_model_is_refused(exporter, tmp_path):
    import torch

    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(exporter.ExportError, match=r"other\.pth does not fit"):
        exporter.load_model(CONFIG, tmp_path / "other.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_what_is_not_a_checkpoint_is_refused(exporter, tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(exporter.ExportError, match=r"bad\.pth is not a checkpoint"):
        exporter.load_model(CONFIG, tmp_path / "bad.pth")


def test_a_graph_that_drifts_is_not_put_in_place(exporter, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "TOLERANCE", 0.0)
    with pytest.raises(exporter.ExportError, match=r"logits differs by .* allowed 0e\+00"):
        exporter.export_onnx(exporter.load_model(CONFIG, CHECKPOINT), tmp_path / "model.onnx", size=(256, 256))
    assert not list(tmp_path.iterdir())
