"""Tiny models of the original Mask2Former: their configurations, and files of their weights.

`references/detectron2_*.json` has the names and shapes of the weights and what the original's own code computes of
them; the docstring of test_detectron2_source.py says how it was made.
"""

import json
import math
import pickle
import zlib
from pathlib import Path

import numpy as np
from seeded import relative_position_index

REFERENCES = Path(__file__).parent / "references"

_BASE = """
MODEL:
  BACKBONE: {FREEZE_AT: 0, NAME: build_resnet_backbone}
  WEIGHTS: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  RESNETS:
    DEPTH: 50
    STEM_TYPE: "basic"
    STEM_OUT_CHANNELS: 8
    WIDTH_PER_GROUP: 4
    RES2_OUT_CHANNELS: 16
    STRIDE_IN_1X1: False
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
DATASETS:
  TRAIN: ("cityscapes_fine_panoptic_train",)
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 1024) for x in range(5, 21)]"]
  MIN_SIZE_TEST: 96
  MAX_SIZE_TEST: 150
  FORMAT: "RGB"
TEST: {EVAL_PERIOD: 5000}
VERSION: 2
"""
_HEADS = """
_BASE_: base.yaml
MODEL:
  META_ARCHITECTURE: "MaskFormer"
  SEM_SEG_HEAD:
    NAME: "MaskFormerHead"
    NUM_CLASSES: 19
    CONVS_DIM: 32
    MASK_DIM: 16
    NORM: "GN"
    PIXEL_DECODER_NAME: "MSDeformAttnPixelDecoder"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES: ["res3", "res4", "res5"]
    TRANSFORMER_ENC_LAYERS: 1
  MASK_FORMER:
    TRANSFORMER_DECODER_NAME: "MultiScaleMaskedTransformerDecoder"
    TRANSFORMER_IN_FEATURE: "multi_scale_pixel_decoder"
    HIDDEN_DIM: 32
    NUM_OBJECT_QUERIES: 12
    NHEADS: 4
    DROPOUT: 0.0
    DIM_FEEDFORWARD: 48
    DEC_LAYERS: 4
    TEST:
      SEMANTIC_ON: True
      INSTANCE_ON: True
      PANOPTIC_ON: True
      OVERLAP_THRESHOLD: 0.2
      OBJECT_MASK_THRESHOLD: 0.3
"""
_SWIN = """
_BASE_: r50.yaml
MODEL:
  BACKBONE: {NAME: "D2SwinTransformer"}
  SWIN: {EMBED_DIM: 8, DEPTHS: [2, 2, 2, 2], NUM_HEADS: [1, 2, 4, 8], WINDOW_SIZE: 4, APE: False}
  SEM_SEG_HEAD: {NUM_CLASSES: 3}
  MASK_FORMER:
    ENFORCE_INPUT_PROJ: True
    TEST: {SEMANTIC_ON: False, PANOPTIC_ON: False}
  PIXEL_MEAN: [103.530, 116.280, 123.675]
  PIXEL_STD: [1.0, 1.0, 1.0]
DATASETS: {TRAIN: ["my_parts_train"]}
INPUT: {FORMAT: BGR}
TEST: {DETECTIONS_PER_IMAGE: 20}
"""


# As wide, as deep and as many queries as the embedded model, and inputs of its size
EMBEDDED_SIZE = """
MODEL:
  RESNETS: {DEPTH: 18, STEM_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 16, RES2_OUT_CHANNELS: 16}
  SEM_SEG_HEAD: {NUM_CLASSES: 5, CONVS_DIM: 64, MASK_DIM: 64, TRANSFORMER_ENC_LAYERS: 2}
  MASK_FORMER: {HIDDEN_DIM: 64, NUM_OBJECT_QUERIES: 40, DIM_FEEDFORWARD: 256, DEC_LAYERS: 4}
DATASETS: {TRAIN: ["my_shapes_train"]}
INPUT: {MIN_SIZE_TEST: 256, MAX_SIZE_TEST: 256}
"""


def write_config(folder, name, more=""):
    """Write the configuration of a tiny model, `r50` or `swin`, and its bases; return its path."""
    for each, text in (("base", _BASE), ("r50", _HEADS), ("swin", _SWIN)):
        (folder / f"{each}.yaml").write_text(text)
    if not more:
        return folder / f"{name}.yaml"
    (folder / "mine.yaml").write_text(f"_BASE_: {name}.yaml\n{more}")
    return folder / "mine.yaml"


def reference(name):
    """What the original's code computes: see the docstring of test_detectron2_source.py."""
    return json.loads((REFERENCES / f"detectron2_{name}.json").read_text())


def shapes_of(config):
    """The names and shapes of the weights of a configuration, in the original's words."""
    from m2f_export.sources.detectron2_config import read_detectron2_config
    from m2f_export.sources.detectron2_names import MASK2FORMER, OriginalNames
    from m2f_export.sources.detectron2_network import mask2former
    from m2f_export.sources.mmdetection import Config, build_model

    network = build_model(Config({"model": mask2former(read_detectron2_config(config))}), config)
    return {name: values.shape for name, values in OriginalNames(network, MASK2FORMER).state_dict().items()}


def weights(shapes):
    """Make weights by name, float32; each depends on its name and shape alone."""
    return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def _weight(name, shape):
    if name.endswith("relative_position_index"):
        return relative_position_index(round(math.sqrt(shape[0])))
    draw = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if name.endswith("running_var"):
        draw = 0.5 + draw**2
    elif len(shape) == 1:
        draw = 0.1 * draw + name.endswith("weight")  # of normalisations
    elif name.endswith("relative_position_bias_table"):
        draw = 0.2 * draw
    elif "query" in name:
        draw = 6 * draw  # so that queries differ
    elif "level_embed" not in name:
        draw = draw * 1.4 / math.sqrt(math.prod(shape[1:]))
    if "predictor" in name and name.endswith(("out_proj.weight", "linear2.weight")):
        draw = 0.15 * draw  # what queries learn from each other and from the image
    if name.endswith("mask_features.weight"):
        draw = draw - draw.mean(1, keepdims=True)  # what all channels have in common would make all masks alike
    if name.endswith("class_embed.weight"):
        draw = 3 * draw
    return draw.astype(np.float32)


def write_pickle(path, contents):
    """Write a `.pkl` as detectron2's model zoo has them."""
    path.write_bytes(pickle.dumps({"model": contents, "__author__": "Mask2Former"}))
    return path


def smooth_picture(height, width):
    """A picture without detail, uint8 RGB [height, width, 3]: a file keeps it whole as PNG."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 100 * np.sin(x / a + y / b) for a, b in ((9, 14), (17, -11), (-7, 23))]
    return np.stack(planes, -1).round().astype(np.uint8)
