"""Tiny models of the original MaskFormer: a panoptic one on ResNet and a semantic one on Swin."""

import json
from pathlib import Path

from seeded import weights

REFERENCES = json.loads(Path(__file__).with_name("references").joinpath("original_maskformer.json").read_text())

_BASE = """
MODEL:
  META_ARCHITECTURE: "MaskFormer"
  BACKBONE: {FREEZE_AT: 0, NAME: build_resnet_backbone}
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  RESNETS:
    DEPTH: 50
    STEM_OUT_CHANNELS: 8
    WIDTH_PER_GROUP: 4
    RES2_OUT_CHANNELS: 16
    STRIDE_IN_1X1: False
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
  SEM_SEG_HEAD:
    NAME: "MaskFormerHead"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    NUM_CLASSES: 19
    CONVS_DIM: 32
    MASK_DIM: 32
    NORM: "GN"
    PIXEL_DECODER_NAME: "TransformerEncoderPixelDecoder"
    TRANSFORMER_ENC_LAYERS: 1
  MASK_FORMER:
    TRANSFORMER_IN_FEATURE: "transformer_encoder"
    HIDDEN_DIM: 32
    NUM_OBJECT_QUERIES: 12
    NHEADS: 4
    DIM_FEEDFORWARD: 48
    DEC_LAYERS: 2
    SIZE_DIVISIBILITY: 32
    TEST: {PANOPTIC_ON: True, OVERLAP_THRESHOLD: 0.3, OBJECT_MASK_THRESHOLD: 0.3}
DATASETS: {TRAIN: ["cityscapes_fine_panoptic_train"], TEST: ["cityscapes_fine_panoptic_val"]}
INPUT: {MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 150, FORMAT: "RGB"}
VERSION: 2
"""
_SWIN = """
_BASE_: resnet.yaml
MODEL:
  BACKBONE: {NAME: "D2SwinTransformer"}
  SWIN: {EMBED_DIM: 8, DEPTHS: [2, 2, 1, 1], NUM_HEADS: [1, 2, 4, 8], WINDOW_SIZE: 4}
  SEM_SEG_HEAD: {NUM_CLASSES: 5, PIXEL_DECODER_NAME: "BasePixelDecoder"}
  MASK_FORMER: {TRANSFORMER_IN_FEATURE: "res5", ENFORCE_INPUT_PROJ: True, TEST: {PANOPTIC_ON: False}}
DATASETS: {TRAIN: ["my_regions_train"], TEST: ["my_regions_val"]}
"""
NAMES = ("resnet", "swin")


def write_config(folder, name, more=""):
    """Write the configuration of a tiny model, and its base; `more` overrides it in a file of its own."""
    for each, text in zip(NAMES, (_BASE, _SWIN), strict=True):
        (folder / f"{each}.yaml").write_text(text)
    if not more:
        return folder / f"{name}.yaml"
    (folder / "mine.yaml").write_text(f"_BASE_: {name}.yaml\n{more}")
    return folder / "mine.yaml"


def write_checkpoint(folder, name):
    """Write the weights of a tiny model."""
    import torch

    reference = REFERENCES[name]
    tensors = {key: torch.from_numpy(value) for key, value in weights(reference["shapes"], reference["seed"]).items()}
    torch.save({"model": {**tensors, "criterion.empty_weight": torch.ones(1)}}, folder / "model_final.pth")
    return folder / "model_final.pth"
