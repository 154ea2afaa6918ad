"""The form that every kind of checkpoint is read into."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from m2f.model_facts import NO_FACTS, ModelFacts
from m2f.preprocess import Preprocessing
from m2f.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained model, ready to trace, and what a server must know to feed it.

    Attributes:
        kind: the kind of checkpoint, for people: `mmdet Mask2Former`, `Hugging Face EomtForUniversalSegmentation`.
        network: evaluation mode, on the CPU; normalised RGB float32 [N, 3, H, W] ->
            cls_logits float32 [N, Q, C+1] (no-object last) and mask_logits float32 [N, Q, H/4, W/4].
            None if the graph itself is given, as ONNX.
        preprocessing: how an image becomes the input that the network was trained on, as pixels (`uint8_hwc`): `mean`
            and `std` are those of RGB 0..255; `pad_value` is the mean if padding comes after normalisation.
        num_classes: number of classes C.
        facts: class names, things and mask stride (4, or 1 if a given graph has full-size masks).
        settings: the source's own post-processing (mmdet's `test_cfg`).
        divisor: H and W must be multiples of this number.
        fixed_size: H and W if the network takes only one size (EoMT), else None.
    """

    kind: str
    network: torch.nn.Module | None
    preprocessing: Preprocessing
    num_classes: int
    facts: ModelFacts = NO_FACTS
    settings: Settings = field(default_factory=Settings)
    divisor: int = 32
    fixed_size: tuple[int, int] | None = None
