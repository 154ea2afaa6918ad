"""mmdetection configuration and checkpoint -> Source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from m2f.model_facts import ModelFacts
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_export.export_errors import ExportError
from m2f_export.sources.base import Source
from m2f_export.sources.checkpoint import load_weights, read_checkpoint, stated_classes
from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmdeploy.core.rewriters.rewriter_manager import RewriterContext, RewriterManager  # noqa: E402
from mmdet.registry import DATASETS, MODELS  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

SUPPORTED = ("Mask2Former",)
DIVISOR = 32  # the coarsest feature map is at stride 32
# Steps allowed in a test pipeline beside one Resize: they do not change the pixels.
_HARMLESS = ("LoadImageFromFile", "LoadAnnotations", "LoadPanopticAnnotations", "PackDetInputs")

# A registry of our own: MMDeploy's Mask2Former rewrites upsample the masks in the graph, and its Swin rewrites fix the
# batch (open-mmlab/mmdeploy#2920).
REWRITES = RewriterManager()


@REWRITES.function_rewriter.register_rewriter("mmdet.models.backbones.swin.ShiftWindowMSA.window_reverse")
def window_reverse(self: Any, windows: torch.Tensor, H: int, W: int) -> torch.Tensor:  # noqa: N803 (mmdet's names)
    """Merge windows [B * windows, side, side, C] into [B, H, W, C]; in mmdet B is a Python int, so a constant."""
    side, channels = self.window_size, windows.shape[-1]
    rows = windows.view(-1, H // side, W // side, side, side, channels)
    return rows.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, channels)


class Network(torch.nn.Module):
    """mmdetection's Mask2Former without its pre- and post-processing."""

    def __init__(self, model: Any, *, takes_bgr: bool) -> None:
        super().__init__()
        self.model = model
        self.takes_bgr = takes_bgr

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute normalised RGB [N, 3, H, W] -> last layer's cls_logits [N, Q, C+1], mask_logits [N, Q, H/4, W/4]."""
        with RewriterContext({}, rewriter_manager=REWRITES):
            features = self.model.extract_feat(image.flip(1) if self.takes_bgr else image)
            classes, masks = self.model.panoptic_head(features, [])
        return classes[-1], masks[-1]


def load_mmdet(config: Path, checkpoint: Path) -> Source:
    """Build the detector of an mmdetection configuration and load its weights.

    Args:
        config: a `.py` configuration whose model is a `Mask2Former`.
        checkpoint: a checkpoint of mmdetection's training, or weights alone. Only tensors and plain values are
            unpickled.

    Raises:
        ExportError: a file is missing or cannot be read, the model is of another architecture, the weights do not fit,
            or the server cannot reproduce the test pipeline.
    """
    settings = read_config(config)
    contents = read_checkpoint(checkpoint)
    model = build_model(settings, config)
    load_weights(model, contents, checkpoint, config)
    return as_source(model, settings, config, trained_on=stated_classes(contents, checkpoint))


def describe_mmdet(config: Path) -> Source:
    """Read everything but the network, for a graph that exists already.

    Raises:
        ExportError: the configuration cannot be read or is of another architecture, or the server cannot reproduce its
            test pipeline.
    """
    settings = read_config(config)
    return as_source(None, settings, config)


def as_source(model: Any, settings: Config, config: Path, *, trained_on: tuple[str, ...] = ()) -> Source:
    """Describe a model and its configuration.

    Args:
        model: the detector with its weights; None: only the configuration.
        settings: the configuration.
        config: the configuration's file, for messages.
        trained_on: class names that the checkpoint states.
    """
    preprocessor = settings.model.get("data_preprocessor") or settings.get("data_preprocessor") or {}
    # mmdetection reads BGR; a preprocessor that does not swap passes BGR on, with mean and std in that order
    takes_bgr = not preprocessor.get("bgr_to_rgb", False)
    head = settings.model.panoptic_head
    num_classes = head.num_things_classes + head.num_stuff_classes
    return Source(
        kind=f"mmdetection {settings.model.type} ({config.stem})",
        network=Network(model, takes_bgr=takes_bgr).eval() if model is not None else None,
        preprocessing=_preprocessing(settings, preprocessor, config, takes_bgr=takes_bgr),
        num_classes=num_classes,
        facts=ModelFacts(
            class_names=_class_names(settings, trained_on, num_classes),
            thing_classes=frozenset(range(head.num_things_classes)),  # in mmdetection stuff comes after the things
        ),
        settings=_test_settings(settings.model.get("test_cfg") or {}),
        divisor=DIVISOR,
    )


def _test_settings(test_cfg: Mapping[str, Any]) -> Settings:
    """Return what `MaskFormerFusionHead` reads of its `test_cfg`, with the defaults of that head."""
    return Settings(
        pre_top_k=test_cfg.get("max_per_image", 100),
        panoptic_score_threshold=test_cfg.get("object_mask_thr", 0.8),
        panoptic_overlap_threshold=test_cfg.get("iou_thr", 0.8),
        panoptic_filter_low_score=test_cfg.get("filter_low_score", False),
    )


def read_config(path: Path) -> Config:
    """Read an mmdetection configuration.

    Raises:
        ExportError: the file is missing, not a configuration, or not the configuration of a Mask2Former.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    init_default_scope("mmdet")
    try:
        settings = Config.fromfile(path)
    except Exception as error:  # a configuration is a program: it may raise anything
        raise ExportError(f"{path} is not a configuration that mmengine can read: {_first_lines(error)}") from error
    architecture = settings.get("model", {}).get("type")
    if architecture not in SUPPORTED:
        said = f"its model is {architecture!r}" if architecture else "it has no 'model'"
        raise ExportError(f"{path}: {said}; allowed: {', '.join(SUPPORTED)}")
    return settings


def build_model(settings: Config, config: Path) -> Any:
    """Build the detector with untrained weights, in evaluation mode on the CPU.

    Raises:
        ExportError: mmdetection cannot build the model.
    """
    try:
        return revert_sync_batchnorm(MODELS.build(settings.model)).eval()
    except Exception as error:  # the registry passes any value in the file to constructors
        raise ExportError(f"mmdetection cannot build the model of {config}: {_first_lines(error)}") from error


def _preprocessing(
    settings: Config, preprocessor: Mapping[str, Any], config: Path, *, takes_bgr: bool
) -> Preprocessing:
    scale, keep_ratio = _resize(settings, config)
    order = -1 if takes_bgr else 1
    mean, std = (tuple(map(float, preprocessor.get(key) or [default] * 3))[::order] for key, default in _NORMAL.items())
    red, green, blue = map(round, mean)  # padding comes after normalisation; in uint8 the mean is rounded
    return Preprocessing(
        scale=scale,
        pad_value=(red, green, blue),
        keep_ratio=keep_ratio,
        input_size=None if keep_ratio else scale[::-1],
        pad_divisor=math.lcm(DIVISOR, preprocessor.get("pad_size_divisor", 1)),
        mean=mean,  # type: ignore[arg-type]
        std=std,  # type: ignore[arg-type]
    )


_NORMAL = {"mean": 0.0, "std": 1.0}


def _resize(settings: Config, config: Path) -> tuple[tuple[int, int], bool]:
    """Return scale and keep_ratio of the one Resize in the test pipeline."""
    resizes = []
    for step in _test_pipeline(settings):
        if step["type"] == "Resize":
            resizes.append(step)
        elif step["type"] not in _HARMLESS:
            allowed = ", ".join((*_HARMLESS, "Resize"))
            raise ExportError(f"{config}: the test pipeline has a step {step['type']!r}; allowed: {allowed}")
    if len(resizes) != 1 or "scale" not in resizes[0]:
        raise ExportError(f"{config}: the test pipeline needs one Resize with a scale; found {resizes or 'none'}")
    resize = resizes[0]
    if resize.get("interpolation", "bilinear") != "bilinear":
        raise ExportError(f"{config}: Resize has interpolation {resize['interpolation']!r}; allowed: 'bilinear'")
    scale = resize["scale"]
    width, height = (scale, scale) if isinstance(scale, int) else scale
    return (int(width), int(height)), bool(resize.get("keep_ratio", False))


def _test_pipeline(settings: Config) -> Iterator[Mapping[str, Any]]:
    dataset = (settings.get("test_dataloader") or {}).get("dataset", {})
    yield from dataset.get("pipeline") or settings.get("test_pipeline") or []


def _class_names(settings: Config, trained_on: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """Return the class names of the checkpoint, else the configuration, else the data set, if one for each class."""
    dataset = (settings.get("test_dataloader") or {}).get("dataset", {})
    known = DATASETS.get(dataset["type"]) if dataset.get("type") else None
    stated = (
        trained_on,
        (dataset.get("metainfo") or {}).get("classes", ()),
        getattr(known, "METAINFO", {}).get("classes", ()),
    )
    return next((tuple(names) for names in stated if len(names) == num_classes), ())


def _first_lines(error: Exception, limit: int = 600) -> str:
    text = str(error).strip() or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " …"
