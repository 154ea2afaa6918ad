"""Logits that real graphs give for real pictures."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path

import onnxruntime as ort
import torch

from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_export.sources.mmdetection import Network, build_model, read_config

from .scenes import ROOT, Case, Size

EMBEDDED = ROOT / "model_repository/mask2former_engine/1/model.onnx"
IMAGES = ROOT / "examples/images"


def embedded(image: str) -> Case:
    """Return the logits that the embedded model gives for a picture of `examples/images`."""
    preprocessing = Preprocessing(scale=(256, 256), input_size=(256, 256), pad_value=(124, 116, 104))
    batch, img_shape, ori_shape = preprocessing([(IMAGES / image).read_bytes()])
    session = ort.InferenceSession(EMBEDDED, providers=["CPUExecutionProvider"])
    cls_logits, mask_logits = session.run(["cls_logits", "mask_logits"], {"input": batch})
    height, width = ori_shape[0].tolist()
    return Case(
        name=f"embedded model, {image}, {height}x{width}",
        cls_logits=cls_logits[0],
        mask_logits=mask_logits[0],
        img_shape=(int(img_shape[0, 0]), int(img_shape[0, 1])),
        ori_shape=(height, width),
        settings=Settings(score_threshold=0.5),
    )


R50 = """
_base_ = ["mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"]
model = dict(backbone=dict(init_cfg=None))
"""


def resnet50(image: str, output: Size = (800, 1333)) -> Case:
    """Return the logits of the official R50 network at 800 x 1344, with random weights, for a picture.

    Its masks are noise without a class, and so the worst case: nothing can be dropped, and half of all pixels lie in
    one of countless specks.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = Path(folder) / "r50.py"
        config.write_text(R50)
        torch.manual_seed(0)
        settings = read_config(config)
        model = build_model(settings, config)
        logging.disable(logging.WARNING)  # mmengine lists how every weight was initialised
        model.init_weights()
        logging.disable(logging.NOTSET)
    network = Network(model, takes_bgr=False).eval()
    preprocessing = Preprocessing(
        scale=(1333, 800), input_size=(800, 1344), layout="float32_chw", mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    )  # fmt: skip
    batch, img_shape, _ = preprocessing([(IMAGES / image).read_bytes()])
    with torch.inference_mode():
        cls_logits, mask_logits = network(torch.from_numpy(batch))
    return Case(
        name=f"R50, random weights, {image}, {output[0]}x{output[1]}",
        cls_logits=cls_logits[0].numpy(),
        mask_logits=mask_logits[0].numpy(),
        img_shape=(int(img_shape[0, 0]), int(img_shape[0, 1])),
        ori_shape=output,
        settings=Settings(score_threshold=0.0),
    )
