"""Small models of real architectures, with random weights, in the files that people have."""

import contextlib
import io
import itertools
import logging
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples/shapes/mask2former_shapes.py"
CHECKPOINT = ROOT / "examples/shapes/mask2former_shapes.pth"
COMMITTED = ROOT / "model_repository/mask2former_engine/1/model.onnx"

SMALL = """
_base_ = ["mmdet::mask2former/{name}"]
model = dict(
    backbone={backbone},
    panoptic_head=dict(
        in_channels={channels}, feat_channels=32, out_channels=32, num_queries=12,
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=8),
            encoder=dict(num_layers=1, layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=32, num_heads=4), ffn_cfg=dict(embed_dims=32, feedforward_channels=64))),
            positional_encoding=dict(num_feats=16)),
        positional_encoding=dict(num_feats=16),
        transformer_decoder=dict(num_layers=3, layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32, num_heads=4), cross_attn_cfg=dict(embed_dims=32, num_heads=4),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=64)))))
"""
RESNET = "dict(depth=18, base_channels=8, init_cfg=None)", [8, 16, 32, 64]
SWIN = "dict(embed_dims=16, depths=[2, 1, 1, 1], num_heads=[1, 2, 4, 8], init_cfg=None)", [16, 32, 64, 128]


def small_config(folder, name, more=""):
    """Write a configuration that makes an official one small."""
    backbone, channels = SWIN if "swin" in name else RESNET
    path = folder / f"small_{name}"
    path.write_text(SMALL.format(name=name, backbone=backbone, channels=channels) + more)
    return path


def random_checkpoint(config):
    """Write random weights for a configuration beside it."""
    import torch

    from m2f_export.sources.mmdetection import build_model, read_config

    torch.manual_seed(0)
    settings = read_config(config)
    settings.model.backbone.init_cfg = None  # no pretrained weights to fetch
    model = build_model(settings, config)
    logging.disable(logging.WARNING)  # mmengine lists how every weight was initialised
    with contextlib.redirect_stdout(io.StringIO()):
        model.init_weights()
    logging.disable(logging.NOTSET)
    path = config.with_suffix(".pth")
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def pure_python_config(folder, pipeline, more=""):
    """Write the embedded model's configuration with classes for types, a pipeline of its own and names of its own."""
    from m2f_export.sources.mmdetection import read_config

    imported = {
        "mmcv.transforms": ["LoadImageFromFile"],
        "mmdet.datasets": ["CocoDataset"],
        "mmdet.datasets.transforms": ["PackDetInputs", "Resize"],
        "mmdet.models": [
            "CrossEntropyLoss", "DetDataPreprocessor", "DiceLoss", "Mask2Former", "Mask2FormerHead",
            "MaskFormerFusionHead", "MSDeformAttnPixelDecoder", "ResNet",
        ],
        "torch.nn": ["ReLU"],
    }  # fmt: skip
    model = repr(read_config(CONFIG).model)
    for name in itertools.chain(*imported.values()):
        model = model.replace(f"'type': '{name}'", f"'type': {name}")
    lines = [f"from {module} import {', '.join(names)}" for module, names in imported.items()]
    path = folder / "pure.py"
    path.write_text("\n".join([
        *lines, f"model = {model}", f"pipeline = [{', '.join(pipeline)}]",
        "metainfo = dict(CLASSES=('a, b', 'c', 'd', 'e', 'f'))",
        "test_dataloader = dict(dataset=dict(type=CocoDataset, pipeline=pipeline, metainfo=metainfo))", more,
    ]))  # fmt: skip
    return path


def smooth(count, height, width, seed=0):
    """Random pictures without detail, uint8 [count, H, W, 3]."""
    import cv2
    import numpy as np

    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in coarse])


def draw_held_out(folder, count):
    """Draw the first held-out pictures, in `val`, with annotations; a picture does not depend on how many are made."""
    generate = [sys.executable, ROOT / "examples/shapes/generate.py", "--out", folder]
    subprocess.run([*generate, "--train", "0", "--val", str(count), "--seed", "7"], check=True)
    return folder
