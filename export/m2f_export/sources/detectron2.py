"""A configuration and weights of the original Mask2Former or MaskFormer (facebookresearch, detectron2) -> Source.

The network is built of mmdetection's modules, which compute the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from m2f.model_facts import ModelFacts
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_export.export_errors import ExportError
from m2f_export.sources import detectron2_options as options
from m2f_export.sources.base import Source
from m2f_export.sources.checkpoint import load_weights
from m2f_export.sources.detectron2_checkpoint import read_detectron2_checkpoint
from m2f_export.sources.detectron2_config import Detectron2Config, read_detectron2_config
from m2f_export.sources.detectron2_datasets import classes_of
from m2f_export.sources.detectron2_maskformer import MASKFORMER, is_maskformer, maskformer
from m2f_export.sources.detectron2_names import MASK2FORMER, OriginalNames, Renames
from m2f_export.sources.detectron2_network import mask2former
from m2f_export.sources.mmdet_options import Table
from m2f_export.sources.mmdet_pipeline import DIVISOR, Preparation, padded, pixel_of, within_limits
from m2f_export.sources.mmdetection import SMALL_MODEL, Network, build_model

from mmengine.config import Config  # isort: skip (after the stand-in for mmcv's operators)
from mmengine.registry import init_default_scope  # isort: skip

_OF_TRAINING = frozenset({"criterion"})  # parts of the names of weights
_RESIZES_LOGITS = ("SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", "PANOPTIC_ON", "INSTANCE_ON")


class _Architecture(NamedTuple):
    """Where Mask2Former and MaskFormer differ.

    Attributes:
        name: the architecture, for people.
        detector: returns the network for mmdetection.
        names: the original's names of its weights.
        divisibility: the option `SIZE_DIVISIBILITY`.
        filter_low_score: whether `panoptic_inference` leaves out pixels outside a query's own mask.
    """

    name: str
    detector: Callable[[Detectron2Config], dict[str, Any]]
    names: Renames
    divisibility: Table
    filter_low_score: bool


_MASK2FORMER = _Architecture("Mask2Former", mask2former, MASK2FORMER, options.SIZE_DIVISIBILITY, True)
_MASKFORMER = _Architecture("MaskFormer", maskformer, MASKFORMER, options.MASKFORMER_DIVISIBILITY, False)


def _architecture(config: Detectron2Config) -> _Architecture:
    return _MASKFORMER if is_maskformer(config) else _MASK2FORMER


def load_detectron2(file: Path, weights: Path) -> Source:
    """Build the model of a configuration and load its weights.

    Args:
        file: a `.yaml` of facebookresearch/Mask2Former or MaskFormer, or of a project with the same code.
        weights: `model_final.pkl` or `.pth`. Only arrays, tensors and plain values are unpickled.

    Raises:
        ExportError: a file is missing or cannot be read, the configuration states what is not reproduced, or the
            weights do not fit.
    """
    config = read_detectron2_config(file)
    architecture = _architecture(config)
    detector, preparation = architecture.detector(config), read_preparation(config)
    source = describe(config, preparation.preprocessing)
    contents = read_detectron2_checkpoint(weights)
    init_default_scope("mmdet")
    model = build_model(Config({"model": detector}), file, most_bytes=4 * weights.stat().st_size + SMALL_MODEL)
    taken = load_weights(OriginalNames(model, architecture.names), contents, weights, file, without=_OF_TRAINING)
    return replace(
        source, notes=(*source.notes, *taken), network=Network(model, takes_bgr=preparation.takes_bgr).eval()
    )


def describe_detectron2(file: Path) -> Source:
    """Read everything but the network, for a graph that exists already.

    Raises:
        ExportError: the configuration cannot be read, or states what is not reproduced.
    """
    config = read_detectron2_config(file)
    _architecture(config).detector(config)
    preparation = read_preparation(config)
    if preparation.takes_bgr:
        raise ExportError(
            f"{file}: INPUT.FORMAT is 'BGR', and a graph does not say whether it takes BGR; allowed: the checkpoint in "
            "place of the graph"
        )
    return describe(config, preparation.preprocessing)


def describe(config: Detectron2Config, preprocessing: Preprocessing) -> Source:
    """Return what a configuration says of a model, without its network.

    Args:
        config: the configuration.
        preprocessing: how images are prepared, as `read_preparation` returns it.

    Raises:
        ExportError: the server cannot reproduce an option; the message names the key.
    """
    stated = config.read("MODEL.MASK_FORMER.TEST", options.MASK_FORMER_TEST)
    config.read("TEST.AUG", options.TEST_AUG)
    count = config.read("MODEL.SEM_SEG_HEAD", options.NUM_CLASSES, whole=False)["NUM_CLASSES"]
    trained_on = config.read("DATASETS", options.DATASETS, whole=False)["TRAIN"]
    classes = classes_of(trained_on[0] if trained_on else "", count)
    architecture = _architecture(config)
    return Source(
        kind=f"original {architecture.name} ({config.file.stem})",
        network=None,
        preprocessing=preprocessing,
        num_classes=count,
        facts=ModelFacts(class_names=classes.names, thing_classes=_things(stated, classes.things, count)),
        settings=Settings(
            semantics="detectron2",
            pre_top_k=config.read("TEST", options.TEST, whole=False)["DETECTIONS_PER_IMAGE"],
            panoptic_score_threshold=stated["OBJECT_MASK_THRESHOLD"],
            panoptic_overlap_threshold=stated["OVERLAP_THRESHOLD"],
            panoptic_filter_low_score=architecture.filter_low_score,
            semantic_resize="logits" if any(map(stated.get, _RESIZES_LOGITS)) else "scores",
        ),
        divisor=DIVISOR,
        notes=(*_padding(config)[1], *_notes(config, stated, trained_on, named=bool(classes.names))),
    )


def _things(stated: dict[str, Any], things: frozenset[int] | None, count: int) -> frozenset[int] | None:
    """Return the countable classes; None if they are not known.

    A model without panoptic segments gives instances of all its classes.
    """
    return things if stated["PANOPTIC_ON"] else frozenset(range(count))


def _notes(config: Detectron2Config, stated: dict[str, Any], trained_on: Any, *, named: bool) -> list[str]:
    notes = []
    if not named:
        data_set = trained_on[0] if trained_on else "none"
        notes.append(f"{config.file}: the classes of the data set {data_set} are not known")
    if not stated["PANOPTIC_ON"] and not stated["INSTANCE_ON"]:
        notes.append(
            f"{config.file}: a semantic model; ask for the output 'semantic': instances are regions of a class"
        )
    return notes


def _padding(config: Detectron2Config) -> tuple[int, tuple[str, ...]]:
    """Return the multiple that images are padded to, and what to say of it."""
    stated = config.read("MODEL.MASK_FORMER", _architecture(config).divisibility, whole=False)["SIZE_DIVISIBILITY"]
    return padded(max(1, stated), config.file)  # 0: no padding


def read_preparation(config: Detectron2Config) -> Preparation:
    """Return how detectron2 prepares an image for a test.

    Raises:
        ExportError: the server cannot reproduce an option; the message names the key.
    """
    model = config.read("MODEL", options.MODEL, whole=False)
    image = config.read("INPUT", options.INPUT, whole=False)
    divisor, _ = _padding(config)
    longest, shortest, place = image["MAX_SIZE_TEST"], image["MIN_SIZE_TEST"], config.at("INPUT")
    takes_bgr = image["FORMAT"] == "BGR"
    mean, std = (tuple(map(float, model[key])) for key in ("PIXEL_MEAN", "PIXEL_STD"))
    if takes_bgr:
        mean, std = mean[::-1], std[::-1]
    padding = pixel_of(0, mean, std)
    return Preparation(
        Preprocessing(
            scale=within_limits(longest, min(shortest, longest), place.at("MIN_SIZE_TEST")) if shortest else None,
            size_rule="detectron2",
            resample="pillow_bilinear",
            pad_divisor=divisor,
            layout="uint8_hwc" if padding else "float32_chw",
            pad_value=padding or (0, 0, 0),
            mean=mean,
            std=std,
        ),
        takes_bgr,
    )
