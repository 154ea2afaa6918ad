"""The options of a configuration of detectron2 that decide about a network or its images, with their defaults.

The defaults are those of detectron2, and those that Mask2Former and MaskFormer add. A section whose options build the
network is read as a whole: an option that is in no table is refused, as detectron2 does. Other sections are for
training.
"""

from __future__ import annotations

from typing import Any

from m2f.limits import MAX_CLASSES, MAX_QUERIES
from m2f.parameters import BOOLEAN, FRACTION, Allowed, is_int
from m2f_export.sources.mmdet_options import MAX_INPUT_PIXELS, Option, Table, is_finite, only, whole_number

STAGES = ["res2", "res3", "res4", "res5"]
SWIN, RESNET = "D2SwinTransformer", "build_resnet_backbone"
MASK2FORMER_DECODER = "MSDeformAttnPixelDecoder"
MASKFORMER_DECODERS = ("BasePixelDecoder", "TransformerEncoderPixelDecoder")

_WIDEST = 1 << 14  # channels
_DEEPEST = 1000  # blocks or layers
_LARGEST_SIDE = 1 << 30  # people write 1e5 and 2**30 for "no limit"
_NO_EFFECT = Option(None, Allowed("anything", lambda _: True))
_CHANNELS = whole_number(1, _WIDEST)
_STD = 1e-6  # smallest


def unused(*names: str) -> dict[str, Option]:
    """Return options without effect on a trained model's answers."""
    return dict.fromkeys(names, _NO_EFFECT)


def exactly(value: list[Any]) -> Allowed:
    """Allow one list; a tuple of the same values is the same."""
    return Allowed(repr(value), lambda given: isinstance(given, list | tuple) and list(given) == value)


def _four(text: str, last: int) -> Allowed:
    return Allowed(
        f"four {text}, such as [2, 2, 6, 2]",
        lambda value: (
            isinstance(value, list | tuple) and len(value) == 4 and all(is_int(n) and 1 <= n <= last for n in value)
        ),
    )


def _three(text: str, least: float) -> Allowed:
    return Allowed(
        text,
        lambda value: (
            isinstance(value, list | tuple)
            and len(value) == 3
            and all(is_finite(number) and abs(number) >= least for number in value)
        ),
    )


# --- images and answers ----------------------------------------------------------------------------------------------

MODEL: Table = {
    "META_ARCHITECTURE": Option("GeneralizedRCNN", only("MaskFormer")),
    "PIXEL_MEAN": Option([103.530, 116.280, 123.675], _three("three numbers", 0)),
    "PIXEL_STD": Option([1.0, 1.0, 1.0], _three("three numbers other than 0", _STD)),
}

INPUT: Table = {
    "FORMAT": Option("BGR", only("RGB", "BGR")),
    "MIN_SIZE_TEST": Option(800, whole_number(0, int(MAX_INPUT_PIXELS**0.5))),  # 0: images are not resized
    "MAX_SIZE_TEST": Option(1333, whole_number(1, _LARGEST_SIDE)),
}

TEST: Table = {"DETECTIONS_PER_IMAGE": Option(100, whole_number(1, MAX_QUERIES * MAX_CLASSES))}

# Tests on several sizes of an image, whose answers are merged
TEST_AUG: Table = {"ENABLED": Option(False, only(False)), **unused("MIN_SIZES", "MAX_SIZE", "FLIP")}

_DATA_SETS = Allowed(
    "a list of names",
    lambda value: isinstance(value, list | tuple) and all(isinstance(name, str) for name in value),
)
DATASETS: Table = {"TRAIN": Option((), _DATA_SETS)}

MASK_FORMER_TEST: Table = {
    "SEMANTIC_ON": Option(True, BOOLEAN),
    "INSTANCE_ON": Option(False, BOOLEAN),
    "PANOPTIC_ON": Option(False, BOOLEAN),
    "OBJECT_MASK_THRESHOLD": Option(0.0, FRACTION),
    "OVERLAP_THRESHOLD": Option(0.0, FRACTION),
    "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": Option(False, BOOLEAN),
}

# --- backbones -------------------------------------------------------------------------------------------------------

BACKBONE: Table = {"NAME": Option(RESNET, only(RESNET, SWIN)), **unused("FREEZE_AT")}

RESNETS: Table = {
    "DEPTH": Option(50, only(18, 34, 50, 101, 152)),
    "NUM_GROUPS": Option(1, only(1)),
    "NORM": Option("FrozenBN", only("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN")),
    "WIDTH_PER_GROUP": Option(64, _CHANNELS),
    "STRIDE_IN_1X1": Option(True, BOOLEAN),
    "RES5_DILATION": Option(1, only(1)),
    "RES2_OUT_CHANNELS": Option(256, _CHANNELS),
    "STEM_OUT_CHANNELS": Option(64, _CHANNELS),
    "DEFORM_ON_PER_STAGE": Option([False] * 4, exactly([False] * 4)),
    "OUT_FEATURES": Option(["res4"], exactly(STAGES)),
    # the last three are for DeepLab's backbone
    **unused("DEFORM_MODULATED", "DEFORM_NUM_GROUPS", "RES4_DILATION", "RES5_MULTI_GRID", "STEM_TYPE"),
}

SWIN_TRANSFORMER: Table = {
    "PATCH_SIZE": Option(4, only(4)),
    "EMBED_DIM": Option(96, _CHANNELS),
    "DEPTHS": Option([2, 2, 6, 2], _four("numbers of blocks", _DEEPEST)),
    "NUM_HEADS": Option([3, 6, 12, 24], _four("numbers of heads", _WIDEST)),
    "WINDOW_SIZE": Option(7, whole_number(1, 256)),
    "MLP_RATIO": Option(4.0, Allowed("a whole number", lambda value: value in range(1, 65))),
    "QKV_BIAS": Option(True, BOOLEAN),
    "QK_SCALE": Option(None, Allowed("None or a number", lambda value: value is None or is_finite(value))),
    "APE": Option(False, only(False)),
    "PATCH_NORM": Option(True, only(True)),
    "OUT_FEATURES": Option(STAGES, exactly(STAGES)),
    **unused("PRETRAIN_IMG_SIZE", "DROP_RATE", "ATTN_DROP_RATE", "DROP_PATH_RATE", "USE_CHECKPOINT"),
}

# --- heads -----------------------------------------------------------------------------------------------------------

NUM_CLASSES: Table = {"NUM_CLASSES": Option(54, whole_number(1, MAX_CLASSES))}

_DIVISORS = range(32, 1025, 32)
SIZE_DIVISIBILITY: Table = {
    "SIZE_DIVISIBILITY": Option(
        32, Allowed("a multiple of 32, up to 1024", lambda value: is_int(value) and value in _DIVISORS)
    )
}

# What Mask2Former and MaskFormer share
_HEAD: Table = {
    "NAME": Option("SemSegFPNHead", only("MaskFormerHead")),
    "IN_FEATURES": Option(["p2", "p3", "p4", "p5"], exactly(STAGES)),
    **NUM_CLASSES,
    "CONVS_DIM": Option(128, whole_number(1, _WIDEST)),
    "MASK_DIM": Option(256, _CHANNELS),
    "NORM": Option("GN", only("GN")),
    # the last line's are for DeepLab's head
    **unused(
        "IGNORE_VALUE", "LOSS_WEIGHT", "COMMON_STRIDE",
        "LOSS_TYPE", "PROJECT_FEATURES", "PROJECT_CHANNELS", "ASPP_CHANNELS", "ASPP_DILATIONS", "ASPP_DROPOUT",
        "USE_DEPTHWISE_SEPARABLE_CONV",
    ),
}  # fmt: skip

_TRANSFORMER: Table = {
    "NHEADS": Option(8, whole_number(1, _WIDEST)),
    "DIM_FEEDFORWARD": Option(2048, _CHANNELS),
    "DEC_LAYERS": Option(6, whole_number(1, _DEEPEST)),
    "PRE_NORM": Option(False, only(False)),
    "HIDDEN_DIM": Option(256, _CHANNELS),
    "NUM_OBJECT_QUERIES": Option(100, whole_number(1, MAX_QUERIES)),
    "ENFORCE_INPUT_PROJ": Option(False, BOOLEAN),
    **SIZE_DIVISIBILITY,
    **unused(
        "TEST", "DEEP_SUPERVISION", "NO_OBJECT_WEIGHT", "CLASS_WEIGHT", "DICE_WEIGHT", "MASK_WEIGHT", "DROPOUT",
        "TRAIN_NUM_POINTS", "OVERSAMPLE_RATIO", "IMPORTANCE_SAMPLE_RATIO",
    ),
}  # fmt: skip

MASK2FORMER_HEAD: Table = {
    **_HEAD,
    "CONVS_DIM": Option(
        128, Allowed("a multiple of 32", lambda value: is_int(value) and value in range(32, _WIDEST, 32))
    ),
    "PIXEL_DECODER_NAME": Option("BasePixelDecoder", only(MASK2FORMER_DECODER)),
    "COMMON_STRIDE": Option(4, only(4)),
    "TRANSFORMER_ENC_LAYERS": Option(0, whole_number(1, _DEEPEST)),
    "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": Option(STAGES[1:], exactly(STAGES[1:])),
    # the network has 4 points and NHEADS heads whatever these say
    **unused("DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS"),
}

MASK2FORMER_TRANSFORMER: Table = {
    **_TRANSFORMER,
    "TRANSFORMER_DECODER_NAME": Option(
        "MultiScaleMaskedTransformerDecoder", only("MultiScaleMaskedTransformerDecoder")
    ),
    "TRANSFORMER_IN_FEATURE": Option("res5", only("multi_scale_pixel_decoder")),
    **unused("ENC_LAYERS"),
}

# --- MaskFormer ------------------------------------------------------------------------------------------------------

MASKFORMER_DIVISIBILITY: Table = {"SIZE_DIVISIBILITY": Option(32, whole_number(0, 1024))}

MASKFORMER_HEAD: Table = {
    **MASK2FORMER_HEAD,
    "PIXEL_DECODER_NAME": Option("BasePixelDecoder", only(*MASKFORMER_DECODERS)),
    "TRANSFORMER_ENC_LAYERS": Option(0, whole_number(0, _DEEPEST)),
    **unused("COMMON_STRIDE", "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"),
}

MASKFORMER_TRANSFORMER: Table = {
    **_TRANSFORMER,
    **MASKFORMER_DIVISIBILITY,
    "TRANSFORMER_IN_FEATURE": Option("res5", only("res5", "transformer_encoder")),
    "ENC_LAYERS": Option(0, only(0)),
}
