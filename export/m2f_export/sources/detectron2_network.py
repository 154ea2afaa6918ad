"""From a configuration of detectron2 to the same network of mmdetection's modules."""

from __future__ import annotations

from typing import Any

from m2f_export.export_errors import ExportError
from m2f_export.sources import detectron2_options as options
from m2f_export.sources.detectron2_config import Detectron2Config

_ENCODER_FFN = 1024  # whatever DIM_FEEDFORWARD says
_BASIC_BLOCKS = (18, 34)  # depths of ResNet
_RELU = {"type": "ReLU", "inplace": True}


def backbone(config: Detectron2Config) -> tuple[dict[str, Any], list[int]]:
    """Return a backbone for mmdetection, and the channels of its four outputs.

    Raises:
        ExportError: an option is not reproduced; the message names the key.
    """
    name = config.read("MODEL.BACKBONE", options.BACKBONE)["NAME"]
    return _swin(config) if name == options.SWIN else _resnet(config)


def _resnet(config: Detectron2Config) -> tuple[dict[str, Any], list[int]]:
    section = "MODEL.RESNETS"
    stated = config.read(section, options.RESNETS)
    basic = stated["DEPTH"] in _BASIC_BLOCKS
    width, out = stated["WIDTH_PER_GROUP"], stated["RES2_OUT_CHANNELS"]
    if out != (expected := width if basic else 4 * width):
        raise config.at(section).at("RES2_OUT_CHANNELS").refusal(out, f"{expected}, for WIDTH_PER_GROUP is {width}")
    return {
        "type": "ResNet",
        "depth": stated["DEPTH"],
        "stem_channels": stated["STEM_OUT_CHANNELS"],
        "base_channels": width,
        "style": "caffe" if stated["STRIDE_IN_1X1"] else "pytorch",
        "norm_cfg": {"type": "BN", "requires_grad": False},
        "init_cfg": None,
    }, [out << stage for stage in range(4)]


def _swin(config: Detectron2Config) -> tuple[dict[str, Any], list[int]]:
    section = "MODEL.SWIN"
    stated = config.read(section, options.SWIN_TRANSFORMER)
    width = stated["EMBED_DIM"]
    channels = [width << stage for stage in range(4)]
    for count, heads in zip(channels, stated["NUM_HEADS"], strict=True):
        if count % heads:
            raise config.at(section).at("NUM_HEADS").refusal(stated["NUM_HEADS"], f"divisors of {channels}")
    return {
        "type": "SwinTransformer",
        "embed_dims": width,
        "depths": list(stated["DEPTHS"]),
        "num_heads": list(stated["NUM_HEADS"]),
        "window_size": stated["WINDOW_SIZE"],
        "mlp_ratio": int(stated["MLP_RATIO"]),
        "qkv_bias": stated["QKV_BIAS"],
        "qk_scale": stated["QK_SCALE"],
        "drop_path_rate": 0.0,
        "init_cfg": None,
    }, channels


def mask2former(config: Detectron2Config) -> dict[str, Any]:
    """Return the detector for mmdetection. All classes are things there; the facts of the model say which are.

    Raises:
        ExportError: an option is not reproduced; the message names the key.
    """
    trunk, channels = backbone(config)
    head = config.read("MODEL.SEM_SEG_HEAD", options.MASK2FORMER_HEAD)
    transformer = config.read("MODEL.MASK_FORMER", options.MASK2FORMER_TRANSFORMER)
    classes, width, heads = head["NUM_CLASSES"], head["CONVS_DIM"], transformer["NHEADS"]
    place = config.at("MODEL.MASK_FORMER")
    if transformer["HIDDEN_DIM"] != width:
        raise place.at("HIDDEN_DIM").refusal(transformer["HIDDEN_DIM"], f"{width}, as MODEL.SEM_SEG_HEAD.CONVS_DIM")
    if width % heads:
        raise place.at("NHEADS").refusal(heads, f"a divisor of {width}, which is HIDDEN_DIM")
    if transformer["DEC_LAYERS"] == 1:
        raise ExportError(f"{place.at('DEC_LAYERS')} is 1, which is no layer; allowed: 2 or more")
    attention = {"embed_dims": width, "num_heads": heads, "dropout": 0.0, "batch_first": True}
    position = {"num_feats": width // 2, "normalize": True}
    return {
        "type": "Mask2Former",
        "backbone": trunk,
        "panoptic_head": {
            "type": "Mask2FormerHead",
            "in_channels": channels,
            "strides": [4, 8, 16, 32],
            "feat_channels": width,
            "out_channels": head["MASK_DIM"],
            "num_things_classes": classes,
            "num_stuff_classes": 0,
            "num_queries": transformer["NUM_OBJECT_QUERIES"],
            "enforce_decoder_input_project": transformer["ENFORCE_INPUT_PROJ"],
            "pixel_decoder": {
                "type": "MSDeformAttnPixelDecoder",
                "num_outs": 3,
                "norm_cfg": {"type": "GN", "num_groups": 32},
                "act_cfg": {"type": "ReLU"},
                "encoder": {
                    "num_layers": head["TRANSFORMER_ENC_LAYERS"],
                    "layer_cfg": {
                        "self_attn_cfg": {**attention, "num_levels": 3, "num_points": 4},
                        "ffn_cfg": ffn(width, _ENCODER_FFN),
                    },
                },
                "positional_encoding": position,
            },
            "positional_encoding": position,
            "transformer_decoder": {
                "return_intermediate": True,
                "num_layers": transformer["DEC_LAYERS"] - 1,  # the original's first layer is the queries themselves
                "layer_cfg": {
                    "self_attn_cfg": attention,
                    "cross_attn_cfg": attention,
                    "ffn_cfg": ffn(width, transformer["DIM_FEEDFORWARD"]),
                },
                "init_cfg": None,
            },
            # the constructor reads it, though nothing is trained
            "loss_cls": {"type": "CrossEntropyLoss", "class_weight": [1.0] * classes + [0.1]},
        },
        "panoptic_fusion_head": {
            "type": "MaskFormerFusionHead", "num_things_classes": classes, "num_stuff_classes": 0,
            "loss_panoptic": None, "init_cfg": None,
        },
        "test_cfg": {},
    }  # fmt: skip


def ffn(width: int, hidden: int) -> dict[str, Any]:
    """Return the two linear layers of a transformer's layer, for mmdetection."""
    return {"embed_dims": width, "feedforward_channels": hidden, "num_fcs": 2, "ffn_drop": 0.0, "act_cfg": _RELU}
