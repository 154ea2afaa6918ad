"""The original MaskFormer: its network of mmdetection's modules, and the names of its weights."""

from __future__ import annotations

from typing import Any

from m2f_export.sources import detectron2_options as options
from m2f_export.sources.detectron2_config import Detectron2Config
from m2f_export.sources.detectron2_names import BACKBONE, Renames
from m2f_export.sources.detectron2_network import backbone, ffn
from m2f_export.sources.mmdet_options import only

_ENCODER = "TransformerEncoderPixelDecoder"
_PIXEL_DECODER = r"^panoptic_head\.pixel_decoder\."
_PREDICTOR = "sem_seg_head.predictor."
_LAYER = r"(coder\.layers\.\d+)\."  # of the encoder or the decoder

MASKFORMER: Renames = (
    *BACKBONE,
    # encoder and decoder
    (rf"{_LAYER}self_attn\.attn\.", r"\1.self_attn."),
    (rf"{_LAYER}cross_attn\.attn\.", r"\1.multihead_attn."),
    (rf"{_LAYER}ffn\.layers\.0\.0\.", r"\1.linear1."),
    (rf"{_LAYER}ffn\.layers\.1\.", r"\1.linear2."),
    *((rf"{_LAYER}norms\.{n}\.", rf"\1.norm{n + 1}.") for n in range(3)),
    # pixel decoder
    *((rf"\.lateral_convs\.{n}\.", f".adapter_{n + 1}.") for n in range(3)),
    *((rf"\.output_convs\.{n}\.", f".layer_{n + 1}.") for n in range(3)),
    (r"\.(last_feat_conv|encoder_out_proj)\.", ".layer_4."),
    (r"\.(adapter|layer)_(\d)\.conv\.", r".\1_\2."),
    (r"\.(adapter|layer)_(\d)\.gn\.", r".\1_\2.norm."),
    (r"\.encoder_in_proj\.", ".input_proj."),
    (r"\.mask_feature\.", ".mask_features."),
    (rf"{_PIXEL_DECODER}encoder\.", "panoptic_head.pixel_decoder.transformer.encoder."),
    (_PIXEL_DECODER, "sem_seg_head.pixel_decoder."),
    # predictor
    (r"^panoptic_head\.transformer_decoder\.post_norm\.", f"{_PREDICTOR}transformer.decoder.norm."),
    (r"^panoptic_head\.transformer_decoder\.", f"{_PREDICTOR}transformer.decoder."),
    (r"^panoptic_head\.decoder_input_proj\.", f"{_PREDICTOR}input_proj."),
    (r"^panoptic_head\.cls_embed\.", f"{_PREDICTOR}class_embed."),
    *((rf"^panoptic_head\.mask_embed\.{2 * n}\.", f"{_PREDICTOR}mask_embed.layers.{n}.") for n in range(3)),
    (r"^panoptic_head\.", _PREDICTOR),
)


def is_maskformer(config: Detectron2Config) -> bool:
    """Return whether a configuration is one of MaskFormer: Mask2Former's name their transformer decoder."""
    model: Any = config.values.get("MODEL")
    transformer = model.get("MASK_FORMER", {})
    return isinstance(transformer, dict) and "TRANSFORMER_DECODER_NAME" not in transformer


def maskformer(config: Detectron2Config) -> dict[str, Any]:
    """Return the detector for mmdetection. All classes are things there; the facts of the model say which are.

    Raises:
        ExportError: an option is not reproduced; the message names the key.
    """
    trunk, channels = backbone(config)
    head = config.read("MODEL.SEM_SEG_HEAD", options.MASKFORMER_HEAD)
    transformer = config.read("MODEL.MASK_FORMER", options.MASKFORMER_TRANSFORMER)
    _check(config, head, transformer)
    width = transformer["HIDDEN_DIM"]
    classes = {"num_things_classes": head["NUM_CLASSES"], "num_stuff_classes": 0}
    attention = {"embed_dims": width, "num_heads": transformer["NHEADS"], "dropout": 0.0, "batch_first": True}
    layer = {"self_attn_cfg": attention, "ffn_cfg": ffn(width, transformer["DIM_FEEDFORWARD"])}
    position = {"num_feats": width // 2, "normalize": True}
    pixel_decoder = {"type": "PixelDecoder", "norm_cfg": {"type": "GN", "num_groups": 32}, "act_cfg": {"type": "ReLU"}}
    if head["PIXEL_DECODER_NAME"] == _ENCODER:
        encoder = {"num_layers": head["TRANSFORMER_ENC_LAYERS"], "layer_cfg": layer}
        pixel_decoder |= {"type": _ENCODER, "encoder": encoder, "positional_encoding": position}
    return {
        "type": "MaskFormer",
        "backbone": trunk,
        "panoptic_head": {
            "type": "MaskFormerHead",
            "in_channels": channels,
            "feat_channels": width,
            "out_channels": width,
            **classes,
            "num_queries": transformer["NUM_OBJECT_QUERIES"],
            "pixel_decoder": pixel_decoder,
            "enforce_decoder_input_project": transformer["ENFORCE_INPUT_PROJ"],
            "positional_encoding": position,
            "transformer_decoder": {
                "return_intermediate": True,
                "num_layers": transformer["DEC_LAYERS"],
                "layer_cfg": {**layer, "cross_attn_cfg": attention},
            },
            # the constructor reads it, though nothing is trained
            "loss_cls": {"type": "CrossEntropyLoss", "class_weight": [1.0] * head["NUM_CLASSES"] + [0.1]},
        },
        "panoptic_fusion_head": {"type": "MaskFormerFusionHead", **classes},
        "test_cfg": {},
    }


def _check(config: Detectron2Config, head: dict[str, Any], transformer: dict[str, Any]) -> None:
    """Refuse options that do not fit together, or that mmdetection's modules cannot have."""
    width, place, at = transformer["HIDDEN_DIM"], config.at("MODEL.MASK_FORMER"), config.at("MODEL.SEM_SEG_HEAD")
    for key in ("CONVS_DIM", "MASK_DIM"):
        if head[key] != width:
            raise at.at(key).refusal(head[key], f"{width}, as MODEL.MASK_FORMER.HIDDEN_DIM")
    if width % 32:
        raise place.at("HIDDEN_DIM").refusal(width, "a multiple of 32")
    if width % transformer["NHEADS"]:
        raise place.at("NHEADS").refusal(transformer["NHEADS"], f"a divisor of {width}, which is HIDDEN_DIM")
    encodes = head["PIXEL_DECODER_NAME"] == _ENCODER
    allowed: dict[str, object] = {"TRANSFORMER_IN_FEATURE": "transformer_encoder" if encodes else "res5"}
    if encodes:
        allowed["ENFORCE_INPUT_PROJ"] = False
    for key, value in allowed.items():
        if not only(value).accepts(transformer[key]):
            name = head["PIXEL_DECODER_NAME"]
            raise place.at(key).refusal(transformer[key], f"{value!r}, for PIXEL_DECODER_NAME is {name!r}")
