"""The files of a Hugging Face folder: what `config.json` states, and which files hold the weights.

Everything is checked before transformers sees it, so that a message names the file and the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from m2f.errors import shown
from m2f.limits import MAX_CLASSES
from m2f.parameters import is_int
from m2f_export.export_errors import ExportError, reason
from m2f_export.files import check_file, listing, read_object
from m2f_export.sources.base import checked_names
from m2f_export.sources.checkpoint import INDEX, check_kind, is_safetensors, shards, some

ONEFORMER = "OneFormerForUniversalSegmentation"
ARCHITECTURES = (
    "Mask2FormerForUniversalSegmentation",
    "MaskFormerForInstanceSegmentation",
    "EomtForUniversalSegmentation",
    "EomtDinov3ForUniversalSegmentation",
    ONEFORMER,
)
CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # transformers' order; each may be in shards, beside an index
_MAX_LAYERS = 1000  # of one kind; building more takes minutes and gigabytes
_STACKS = ("layers", "depths", "blocks")  # the keys that say how many layers there are end so


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`; its `id2label` then has numbers and text, and agrees with `num_labels`.

    Raises:
        ExportError: the file cannot be read, the architecture is not supported, or a value is not allowed; the message
            names the file, the key and what is allowed.
    """
    path = folder / CONFIG
    config = read_object(path)
    stated = config.get("architectures")
    architecture = stated[0] if isinstance(stated, list) and stated else None
    if architecture not in ARCHITECTURES:
        raise ExportError(
            f"{path}: architecture {shown(architecture)} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    _check_backbone(config, path)
    if config.get("quantization_config"):
        raise ExportError(f"{path}: quantization_config is not supported; allowed: weights as floating-point numbers")
    for key, count in _numbers(config):
        if key.endswith(_STACKS) and count > _MAX_LAYERS:
            raise ExportError(f"{path}: {key} is {shown(count)}; allowed: up to {_MAX_LAYERS}")
    names = read_labels(config, path)
    others = {key: value for key, value in config.items() if key not in ("label2id", "num_labels")}
    if architecture == ONEFORMER:
        others["is_training"] = False  # else the network wants texts
    return {**others, "id2label": dict(enumerate(names))}


def _check_backbone(config: Mapping[str, Any], path: Path) -> None:
    backbone = config.get("backbone_config")
    kind = backbone.get("model_type") if isinstance(backbone, dict) else None
    if kind == "dinat":
        raise ExportError(
            f"{path}: the backbone dinat is not supported: its neighbourhood attention has no operator in ONNX; "
            "supported: other backbones of transformers, such as swin"
        )
    if config.get("use_timm_backbone") or kind == "timm_backbone":
        raise ExportError(f"{path}: backbones of timm are not supported; supported: those of transformers")
    if config.get("backbone") and backbone is None:  # transformers would ask the Hub for it
        raise ExportError(
            f"{path}: backbone {shown(config['backbone'])} is a name, and nothing is downloaded; allowed: "
            "the backbone's configuration, as backbone_config"
        )


def _numbers(value: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Return every number of a JSON value with the key that it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, key)
    elif isinstance(value, int | float):
        yield key, value


def read_labels(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Return the class names of a `config.json`, by label; transformers' own, `LABEL_0`, if it states only how many.

    Raises:
        ExportError: `id2label` or `num_labels` is not allowed, or the two disagree.
    """
    labels, count = config.get("id2label"), config.get("num_labels")
    if count is not None and not (is_int(count) and 1 <= count <= MAX_CLASSES):
        raise ExportError(f"{path}: num_labels is {shown(count)}; allowed: a whole number from 1 to {MAX_CLASSES}")
    if labels is None:
        return tuple(f"LABEL_{label}" for label in range(count or 2))
    if not isinstance(labels, dict) or not labels:
        raise ExportError(f'{path}: id2label is {shown(labels)}; allowed: an object such as {{"0": "cat", "1": "dog"}}')
    wanted = [str(label) for label in range(len(labels))]
    if wrong := labels.keys() - set(wanted):
        raise ExportError(
            f"{path}: id2label must number its {len(labels)} classes from 0 without gaps; got {some(sorted(wrong))}"
        )
    if count is not None and count != len(labels):
        raise ExportError(f"{path}: num_labels is {count}, and id2label has {len(labels)} names; allowed: as many")
    return checked_names([labels[label] for label in wanted], f"{path}: id2label")


def check_weights(folder: Path) -> int:
    """Check the files that transformers will load the weights from.

    Returns:
        The size of these files in bytes.

    Raises:
        ExportError: there are none, one is missing, or one holds something else; the message names the file.
    """
    names = listing(folder)
    for name in _WEIGHTS:
        if name in names:
            return _check_weight_file(folder / name)
        if name + INDEX in names:
            return sum(_check_weight_file(file) for file in shards(folder / (name + INDEX)))
    others = some(name for name in names if name != CONFIG)
    raise ExportError(f"{folder} has no weights; allowed: {' or '.join(_WEIGHTS)}, or their shards; found {others}")


def _check_weight_file(path: Path) -> int:
    check_file(path)
    if path.suffix != ".safetensors":
        if is_safetensors(check_kind(path)):
            raise ExportError(f"{path} is a safetensors file: name it {path.with_suffix('.safetensors').name}")
        return path.stat().st_size
    try:
        with safe_open(path, framework="pt"):
            return path.stat().st_size
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} is incomplete, or not a safetensors file: {reason(error)}") from error
