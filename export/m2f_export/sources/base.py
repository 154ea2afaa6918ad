"""The form that every kind of checkpoint is read into."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

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
        class_names: names by label; empty if the checkpoint has none.
        num_classes: number of classes C.
        settings: the source's own post-processing (mmdet's `test_cfg`).
        thing_classes: indices of the countable classes, the other classes being stuff; None if the source does not say.
        mask_stride: pixels of the input per mask cell: 4, or 1 if a given graph has full-size masks.
        divisor: H and W must be multiples of this number.
        fixed_size: H and W if the network takes only one size (EoMT), else None.
    """

    kind: str
    network: torch.nn.Module | None
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    num_classes: int
    settings: Settings = field(default_factory=Settings)
    thing_classes: tuple[int, ...] | None = None
    mask_stride: int = 4
    divisor: int = 32
    fixed_size: tuple[int, int] | None = None
