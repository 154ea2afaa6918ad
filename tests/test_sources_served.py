"""From the files of MMSegmentation and MaskFormer to the answers of Triton."""

from contextlib import contextmanager

import mmseg_configs
import numpy as np
import original_maskformers
import pytest
from exports import m2f_export
from maskformer_configs import OFFICIAL, write_config
from mmdet_configs import mmdetections_inputs
from pictures import encode
from seeded import weights
from sources import smooth

pytestmark = [pytest.mark.torch, pytest.mark.server, pytest.mark.filterwarnings("ignore")]

# Pixels of maps that must be equal. The input is float32_chw: random weights make much of a padding that is rounded.
SAME = 0.999


@contextmanager
def served(folder, config, checkpoint, picture):
    """Export a model, and serve it; a client of the server."""
    from m2f_client import Client
    from m2f_server import serve

    (folder / "picture.png").write_bytes(picture)
    exact = ["--layout", "float32_chw", "--tolerance", 1e-3]
    result = m2f_export(config, checkpoint, "--repository", folder / "mine", "--image", folder / "picture.png", *exact)
    assert result.exit_code == 0, result.output
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        serve(model_repository=folder / "mine", config_name="cpu", **ports) as server,
        Client(f"grpc://{server.grpc_url}") as client,
    ):
        yield client


@pytest.mark.official
@pytest.mark.parametrize("kind", [mmseg_configs.MASK2FORMER, mmseg_configs.MASKFORMER], ids=lambda kind: kind[0])
def test_the_semantic_map_is_mmsegmentations(kind, tmp_path):
    picture = encode(mmseg_configs.picture_of(*kind), "png")
    with served(tmp_path, *mmseg_configs.write_model(tmp_path, *kind), picture) as client:
        found = client.predict(picture, outputs=("semantic", "labels"), score_threshold=0.0)
    want = np.array([list(map(int, row)) for row in mmseg_configs.REFERENCES["_".join(kind)]["semantic"]])
    assert (found.semantic == want).mean() >= SAME
    assert len(found.labels) > 0


@pytest.mark.official
def test_panoptic_segments_are_the_original_maskformers(tmp_path):
    picture, want = encode(smooth(1, 60, 100)[0], "png"), original_maskformers.REFERENCES["resnet"]
    files = (
        original_maskformers.write_config(tmp_path, "resnet"),
        original_maskformers.write_checkpoint(tmp_path, "resnet"),
    )
    with served(tmp_path, *files, picture) as client:
        found = client.predict(picture, outputs=("panoptic", "segments"))
    assert (found.panoptic == np.array([list(map(int, row)) for row in want["panoptic"]])).mean() >= SAME
    assert [[s["id"], s["isthing"], s["category_id"]] for s in found.segments] == want["segments"]


MORE = """
model['data_preprocessor'] = dict(pad_size_divisor=32)
model['test_cfg'] = dict(object_mask_thr=0.3, iou_thr=0.3)
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(160, 96), keep_ratio=True), dict(type='PackDetInputs')]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""


@pytest.mark.official
@pytest.mark.parametrize("name", OFFICIAL)
def test_panoptic_segments_are_those_of_mmdetections_maskformer(name, tmp_path):
    import torch
    from mmdet.structures import DetDataSample

    from m2f_export.sources.mmdetection import build_model, load_mmdet, read_config

    config, checkpoint = write_config(tmp_path, name, MORE), tmp_path / "epoch.pth"
    shapes = {key: value.shape for key, value in build_model(read_config(config), config).state_dict().items()}
    torch.save({key: torch.from_numpy(value) for key, value in weights(shapes).items()}, checkpoint)
    picture = encode(smooth(1, 60, 100)[0], "png")
    with served(tmp_path, config, checkpoint, picture) as client:
        found = client.predict(picture, outputs=("panoptic", "segments"))
    ((inputs, img_shape),) = mmdetections_inputs(config, [picture])
    meta = {"img_shape": img_shape, "ori_shape": (60, 100), "batch_input_shape": inputs.shape[2:]}
    with torch.inference_mode():
        model = load_mmdet(config, checkpoint).network.model
        (answer,) = model.predict(torch.from_numpy(inputs), [DetDataSample(metainfo=meta)])
    want = answer.pred_panoptic_seg.sem_seg[0].numpy()
    classes = np.array([133, *(segment["category_id"] for segment in found.segments)])
    assert (classes[found.panoptic] == want % 1000).mean() >= SAME
    assert len(found.segments) > 0
