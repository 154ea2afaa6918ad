"""mmdetection's or MMSegmentation's configuration and checkpoint -> Source."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from m2f.model_facts import ModelFacts
from m2f_export.export_errors import ExportError, reason
from m2f_export.quiet import quiet
from m2f_export.sources.base import Source
from m2f_export.sources.checkpoint import bytes_of, load_weights, read_checkpoint, stated_classes
from m2f_export.sources.mmcv_ops import ensure_mmcv_ops
from m2f_export.sources.mmdet_config import Described, describe, read_config
from m2f_export.sources.mmdet_pipeline import DIVISOR
from m2f_export.sources.mmdet_rewrites import REWRITES
from m2f_export.sources.mmseg_config import HEAD, as_detector, is_segmentor

ensure_mmcv_ops()

from mmdeploy.core.rewriters.rewriter_manager import RewriterContext  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402

_OF_TRAINING = frozenset({"auxiliary_head"})  # parts of the names of weights; MMSegmentation has them
SMALL_MODEL = 1 << 28  # bytes that any model may take


class Network(torch.nn.Module):
    """mmdetection's Mask2Former or MaskFormer without its pre- and post-processing."""

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
    """Build the model of a configuration and load its weights.

    Args:
        config: a `.py` configuration whose model is a `Mask2Former`, a `MaskFormer`, or an `EncoderDecoder` of
            MMSegmentation with the head of one.
        checkpoint: a checkpoint of mmdetection's training, or weights alone. Only tensors and plain values are
            unpickled.

    Raises:
        ExportError: a file is missing or cannot be read, the model is of another architecture, the weights do not fit,
            or the server cannot reproduce the test pipeline.
    """
    settings, described = _described(config)
    contents = read_checkpoint(checkpoint)
    # weights of half precision double; a checkpoint's other contents make the limit generous
    model = build_model(settings, config, most_bytes=4 * bytes_of(checkpoint) + SMALL_MODEL)
    taken = load_weights(_as_stored(model, described.head), contents, checkpoint, config, without=_OF_TRAINING)
    described = described._replace(notes=(*described.notes, *taken))
    network = Network(model, takes_bgr=described.preparation.takes_bgr).eval()
    return as_source(described, config, network, trained_on=stated_classes(contents, checkpoint))


def describe_mmdet(config: Path) -> Source:
    """Read everything but the network, for a graph that exists already.

    Raises:
        ExportError: the configuration cannot be read or is of another architecture, or the server cannot reproduce its
            test pipeline.
    """
    _, described = _described(config)
    if described.preparation.takes_bgr:
        raise ExportError(
            f"{config}: model.data_preprocessor.bgr_to_rgb is False, and a graph does not say whether it takes BGR; "
            "allowed: the checkpoint in place of the graph"
        )
    return as_source(described, config)


def _described(config: Path) -> tuple[Config, Described]:
    """Read a configuration: as mmdetection's, and what it says of its model."""
    settings = read_config(config)
    if not is_segmentor(settings.model):
        return settings, describe(settings, config)
    detector = as_detector(settings, config)
    return detector, _as_segmentor(describe(detector, config))


def _as_segmentor(described: Described) -> Described:
    """Return what is said of MMSegmentation's model.

    Args:
        described: what is said of the model in mmdetection, by `describe`.
    """
    architecture = described.kind.split()[-1]
    return described._replace(
        kind=f"MMSegmentation {architecture}",
        head=HEAD,
        settings=replace(described.settings, semantic_resize="scores"),
        notes=(*described.notes, "the model is for semantic segmentation: ask for the output 'semantic'"),
    )


def _as_stored(model: Any, head: str) -> torch.nn.Module:
    """Return a module of the same weights, in which the head has its name in the checkpoint."""
    parts = {head if name == "panoptic_head" else name: part for name, part in model.named_children()}
    return torch.nn.ModuleDict(parts)


def as_source(
    described: Described, config: Path, network: Network | None = None, *, trained_on: tuple[str, ...] = ()
) -> Source:
    """Return a model as the exporter takes it.

    Args:
        described: what the configuration says.
        config: the configuration's file, for people.
        network: the network with its weights; None: a graph is given.
        trained_on: class names that the checkpoint states. They count if there is one for each class, and the
            configuration states none.
    """
    trained_on = trained_on if len(trained_on) == described.num_classes else ()
    names = described.stated_names or trained_on or described.usual_names
    notes = described.notes
    if trained_on and names != trained_on:
        said = f"{config} states other class names than the checkpoint: {', '.join(names)[:200]}; these are served"
        notes = (*notes, said)
    return Source(
        kind=f"{described.kind} ({config.stem})",
        network=network,
        preprocessing=described.preparation.preprocessing,
        num_classes=described.num_classes,
        # in mmdetection stuff comes after the things
        facts=ModelFacts(class_names=names, thing_classes=frozenset(range(described.num_things))),
        settings=described.settings,
        notes=notes,
        divisor=DIVISOR,
    )


def build_model(settings: Config, config: Path, *, most_bytes: int | None = None) -> Any:
    """Build the detector with untrained weights, in evaluation mode on the CPU.

    Args:
        settings: the configuration, as `read_config` returns it.
        config: the configuration's file, for messages.
        most_bytes: largest memory of all weights; None: no limit.

    Raises:
        ExportError: mmdetection cannot build the model, or its weights are larger than allowed.
    """
    try:
        with quiet(), _Bounded(most_bytes) if most_bytes else nullcontext():
            return revert_sync_batchnorm(MODELS.build(settings.model)).eval()
    except Exception as error:  # the registry passes any value in the file to constructors
        raise ExportError(f"mmdetection cannot build the model of {config}: {reason(error)}") from error


class _Bounded(TorchDispatchMode):
    """Raises MemoryError when the tensors made within it are larger than allowed in all, before they are written to."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.left = self.most = most_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not any(isinstance(value, torch.Tensor) for value in args):
            self.left -= made.numel() * made.element_size()
            if self.left < 0:
                raise MemoryError(
                    f"its weights take more than {self.most >> 20} MiB, more than the checkpoint can hold"
                )
        return made
