"""Turn a configuration of MMSegmentation 1 into a configuration of mmdetection with the same network.

MMSegmentation's Mask2Former and MaskFormer are mmdetection's heads behind backbones that both projects have. So
mmdetection's modules take the weights, and MMSegmentation need not be installed. `EncoderDecoder.predict` with
`mode="whole"` is what a server reproduces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from m2f.limits import MAX_CLASSES, MAX_QUERIES
from m2f.parameters import Allowed
from m2f_export.sources.mmdet_options import NO_EFFECT, Option, Place, Table, only, read_options, whole_number

if TYPE_CHECKING:
    from pathlib import Path

    from mmengine.config import Config

SEGMENTOR = "EncoderDecoder"
HEAD = "decode_head"
_SCOPE = "mmseg"
_ARCHITECTURES = {"Mask2FormerHead": "Mask2Former", "MaskFormerHead": "MaskFormer"}
_RESNETS = ("ResNet", "ResNeXt")
_BACKBONES = (*_RESNETS, "SwinTransformer")
_SAME = {"PackSegInputs": "PackDetInputs", "ADE20KDataset": "ADE20KSegDataset"}  # here, under mmdetection's name
_OF_SEGMENTATION = ("type", "num_classes", "align_corners", "ignore_index", "in_index", "train_cfg", "loss_cls",
                    "loss_mask", "loss_dice")  # fmt: skip

# --- the tables, as in mmdet_options ---------------------------------------------------------------------------------

_A_DICT = Option(None, Allowed("a dict", lambda value: isinstance(value, Mapping)))
_MODEL: Table = {
    "backbone": _A_DICT,
    "decode_head": _A_DICT,
    "neck": Option(None, only(None)),
    "test_cfg": Option({}, Allowed("a dict", lambda value: value is None or isinstance(value, Mapping))),
    **dict.fromkeys(("data_preprocessor", "auxiliary_head", "train_cfg", "pretrained", "init_cfg"), NO_EFFECT),
}
_TEST_CFG: Table = {
    "mode": Option("whole", only("whole")),
    **dict.fromkeys(("crop_size", "stride"), NO_EFFECT),  # of the mode "slide"
}
_PREPROCESSOR: Table = {
    **dict.fromkeys(("mean", "std", "bgr_to_rgb", "rgb_to_bgr"), NO_EFFECT),  # mmdetection's, which reads them
    "pad_val": Option(0, Allowed("a number", lambda value: isinstance(value, int | float))),
    "test_cfg": Option(None, Allowed("a dict, or None", lambda value: value is None or isinstance(value, Mapping))),
    # for labels and training
    **dict.fromkeys(("size", "size_divisor", "seg_pad_val", "batch_augments", "non_blocking"), NO_EFFECT),
}
_PADDING: Table = {
    "size": Option(None, only(None)),
    "size_divisor": Option(
        1, Allowed("None, or a whole number >= 1", lambda value: value is None or whole_number(1, 4096).accepts(value))
    ),
}
_DILATION = "1 in all stages, and strides of 1, 2, 2, 2: the head reads features at 1/4 to 1/32"


def is_segmentor(model: Mapping[str, Any]) -> bool:
    """Return whether the model of a configuration is MMSegmentation's."""
    return _name(model["type"]) == SEGMENTOR


def as_detector(settings: Config, file: Path) -> Config:
    """Return the configuration of mmdetection's model with the same network and the same images.

    Args:
        settings: the configuration of an `EncoderDecoder`.
        file: the configuration's file, for messages.

    Raises:
        ExportError: the network is of another architecture, or an option cannot be reproduced; the message names the
            key.
    """
    settings = type(settings)(_as_in_mmdetection(settings.to_dict()))
    place = Place(file, "model")
    model = read_options(settings.model, _MODEL, place)
    read_options(model["test_cfg"] or {}, _TEST_CFG, place.at("test_cfg"))
    architecture, head, classes = _head(model["decode_head"], place.at(HEAD))
    counts = {"num_things_classes": classes, "num_stuff_classes": 0}
    owner, at = (settings, Place(file, "data_preprocessor"))
    if "data_preprocessor" in settings.model or "data_preprocessor" not in settings:
        owner, at = settings.model, place.at("data_preprocessor")
    owner["data_preprocessor"] = _preprocessor(owner.get("data_preprocessor", {}), at)
    settings.model = {
        "type": architecture,
        "backbone": _backbone(model["backbone"], place.at("backbone")),
        "panoptic_head": {**head, **counts},
        "panoptic_fusion_head": {"type": "MaskFormerFusionHead", **counts},
        **({"data_preprocessor": settings.model.data_preprocessor} if owner is settings.model else {}),
    }
    return settings


def _as_in_mmdetection(value: Any) -> Any:
    """Return a part of a configuration with mmdetection's names for what is the same in both projects."""
    if isinstance(value, list | tuple):
        return type(value)(map(_as_in_mmdetection, value))
    if not isinstance(value, Mapping):
        return value
    part = {key: _as_in_mmdetection(each) for key, each in value.items()}
    if part.get("_scope_") == _SCOPE:
        del part["_scope_"]
    if (name := _name(part.get("type"))) in _SAME:
        part["type"] = _SAME[name]
    return part


def _name(stated: object) -> object:
    """Return the name of a class of MMSegmentation without its scope; what is of another project as it is stated."""
    if isinstance(stated, type):
        return stated.__name__ if stated.__module__.split(".")[0] == _SCOPE else stated
    return stated.removeprefix(f"{_SCOPE}.") if isinstance(stated, str) else stated


def _head(stated: Mapping[str, Any], place: Place) -> tuple[str, dict[str, Any], int]:
    """Return the architecture, the options of mmdetection's head, and the number of classes."""
    kind = _name(stated.get("type"))
    if kind not in _ARCHITECTURES:
        raise place.at("type").refusal(stated.get("type"), " or ".join(map(repr, _ARCHITECTURES)))
    table: Table = {
        "num_classes": Option(None if kind == "Mask2FormerHead" else 150, whole_number(1, MAX_CLASSES)),
        "num_queries": Option(100, whole_number(1, MAX_QUERIES)),
        "align_corners": Option(False, only(False)),
    }
    values = read_options({key: stated[key] for key in table if key in stated}, table, place)
    classes = values["num_classes"]
    # mmdetection's head asks for the weight of each class in training
    loss = {"type": "CrossEntropyLoss", "class_weight": [1.0] * classes + [0.1]}
    options = {key: value for key, value in stated.items() if key not in _OF_SEGMENTATION}
    return _ARCHITECTURES[str(kind)], {**options, "type": kind, "loss_cls": loss}, classes


def _backbone(stated: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Return the options of mmdetection's backbone."""
    kind = _name(stated.get("type"))
    if isinstance(kind, str) and kind.startswith("mmdet."):
        return dict(stated)
    if kind not in _BACKBONES:
        allowed = ", ".join(map(repr, _BACKBONES))
        raise place.at("type").refusal(stated.get("type"), f"{allowed}, or one of mmdetection, 'mmdet.NAME'")
    options = {"init_cfg": None, **stated, "type": kind, "pretrained": None}
    if kind in _RESNETS:
        for key, usual in (("dilations", (1, 1, 1, 1)), ("strides", (1, 2, 2, 2)), ("multi_grid", None)):
            if (value := options.get(key, usual)) is not None and tuple(value) != usual:
                raise place.at(key).refusal(value, _DILATION)
        for key in ("contract_dilation", "multi_grid"):  # without dilations they change nothing
            options.pop(key, None)
        return {"stem_channels": 64, **options}
    ratio = options.get("mlp_ratio", 4)
    if isinstance(ratio, float) and ratio.is_integer():  # mmdetection's Swin takes whole numbers
        options["mlp_ratio"] = int(ratio)
    return options


def _preprocessor(stated: object, place: Place) -> dict[str, Any]:
    """Return the options of mmdetection's data preprocessor."""
    values = read_options(stated, _PREPROCESSOR, place)
    assert isinstance(stated, Mapping)  # else refused
    if (kind := _name(stated.get("type", "SegDataPreProcessor"))) != "SegDataPreProcessor":
        raise place.at("type").refusal(kind, "'SegDataPreProcessor'")
    padding = read_options(values["test_cfg"] or {}, _PADDING, place.at("test_cfg"))
    kept = {key: stated[key] for key in ("mean", "std", "bgr_to_rgb", "rgb_to_bgr") if key in stated}
    padding = {"pad_value": values["pad_val"], "pad_size_divisor": padding["size_divisor"] or 1}
    return {"type": "DetDataPreprocessor", **kept, **padding}
