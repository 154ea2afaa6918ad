"""The form that every kind of checkpoint is read into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from m2f.errors import shown
from m2f.limits import MAX_CLASSES
from m2f.model_facts import NO_FACTS, ModelFacts
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_export.export_errors import ExportError

if TYPE_CHECKING:  # m2f engine builds where there is no torch
    import torch


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained model, ready to trace, and what a server must know to feed it.

    Attributes:
        kind: the kind of checkpoint, for people: `mmdet Mask2Former`, `Hugging Face EomtForUniversalSegmentation`.
        network: evaluation mode, on the CPU; normalised float32 [N, channels, H, W], RGB or grey ->
            cls_logits float32 [N, Q, C+1] (no-object last) and mask_logits float32 [N, Q, H/4, W/4].
            None if the graph itself is given, as ONNX.
        preprocessing: how an image becomes the input that the network was trained on, as pixels (`uint8_hwc`), or as
            floats if no pixel normalises to the padding: `mean` and `std` are those of RGB 0..255; `pad_value` is the
            pixel of `float_pad_value` if padding comes after normalisation.
        num_classes: number of classes C.
        facts: class names, things and mask stride (4, or 1 if a given graph has full-size masks).
        settings: the source's own post-processing (mmdet's `test_cfg`).
        divisor: H and W must be multiples of this number.
        fixed_size: H and W if the network takes only one size (EoMT), else None.
        states_stride: whether `facts.mask_stride` was stated; otherwise a given graph is measured.
        states_threshold: whether `settings.score_threshold` is meant for serving; otherwise the exporter has its own.
        notes: what a user should know of the source, each in a sentence.
    """

    kind: str
    network: torch.nn.Module | None
    preprocessing: Preprocessing
    num_classes: int
    facts: ModelFacts = NO_FACTS
    settings: Settings = field(default_factory=Settings)
    divisor: int = 32
    fixed_size: tuple[int, int] | None = None
    states_stride: bool = False
    states_threshold: bool = False
    notes: tuple[str, ...] = ()


def checked_names(names: Sequence[object], where: str) -> tuple[str, ...]:
    """Return class names if every name is text.

    Args:
        names: the names by label, as a file states them.
        where: the file and the key, for messages.

    Raises:
        ExportError: a name is not text, or there are more than the server takes.
    """
    if len(names) > MAX_CLASSES:
        raise ExportError(f"{where}: {len(names)} classes; allowed: up to {MAX_CLASSES}")
    for label, name in enumerate(names):
        if not isinstance(name, str) or not _is_unicode(name):
            raise ExportError(f"{where}: the name of class {label} is {shown(name)}; allowed: text")
    return tuple(map(str, names))


def _is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: JSON can hold half of a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
