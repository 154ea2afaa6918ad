"""What a user gave to `m2f export`: a kind of model, or what to give instead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from m2f_export.export_errors import ExportError
from m2f_export.files import check_file, listing

Kind = Literal["Hugging Face", "mmdetection", "detectron2", "ONNX"]

ONNX = ".onnx"
CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".safetensors")
YAML = (".yaml", ".yml")
CONFIGURATIONS = (".py", ".json", *YAML)
HUGGING_FACE_CONFIG = "config.json"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")  # of the two slashes a Path keeps one
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_DETECTRON2 = re.compile(rb"^(?:_BASE_|MODEL|SOLVER|DATASETS):", re.MULTILINE)
_YAML_BYTES = 1 << 20


def recognise(model: Path, weights: Path | None) -> Kind:
    """Return the kind of model that the arguments of `m2f export` are.

    Raises:
        ExportError: an argument does not exist or is of another kind; the message says what to give instead.
    """
    for path in (model, weights):
        if path is not None:
            _check_exists(path)
    if model.is_dir():
        if weights is not None:
            raise ExportError(
                f"{model} is a folder and holds its weights: {weights} is one too many. A model of mmdetection is a "
                "configuration file and a checkpoint"
            )
        _check_folder(model)
        return "Hugging Face"
    _check_configuration(model, weights)
    if weights is None:
        raise ExportError(f"{model} needs its checkpoint: m2f export {model} CHECKPOINT")
    if weights.is_dir() and (inside := [name for name in listing(weights) if name.endswith(CHECKPOINTS)]):
        raise ExportError(f"{weights} is a folder; give a checkpoint in it, such as {weights / inside[0]}")
    check_file(weights)
    if model.suffix in YAML and _is_detectron2(model):
        return "detectron2"
    return "ONNX" if weights.suffix == ONNX else "mmdetection"


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ExportError(f"{path} is a link to {path.readlink()}, which does not exist") from error
        raise ExportError(_not_found(path)) from error
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error


def _not_found(path: Path) -> str:
    if url := _URL.fullmatch(str(path)):
        return f"{url[1]}://{url[2]}: m2f downloads nothing; download the model first, and give its files"
    missing = f"{path}: no such file or folder"
    if _HUB_NAME.fullmatch(str(path)) and path.suffix not in (*CONFIGURATIONS, *CHECKPOINTS, ONNX):
        return f"{missing}. A model of the Hugging Face Hub: download it first, hf download {path} --local-dir DIR"
    return missing


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is not Hugging Face's; the message names what there is to give instead."""
    names = listing(folder)
    if HUGGING_FACE_CONFIG in names:
        return
    lacks = f"{folder / HUGGING_FACE_CONFIG}: no such file; a Hugging Face folder has one"
    if "snapshots" in names:  # of the Hub's cache
        raise ExportError(f"{lacks}. Give the folder inside {folder / 'snapshots'}")
    if any((folder / name / "config.pbtxt").is_file() for name in names):
        raise ExportError(f"{lacks}. This is a model repository: m2f serve --model-repository {folder}")
    files = {suffix: [name for name in names if name.endswith(suffix)] for suffix in (".py", ".pth")}
    if any(files.values()):
        config, checkpoint = (folder / found[0] if found else "FILE" for found in files.values())
        raise ExportError(f"{lacks}. A model of mmdetection is two files: m2f export {config} {checkpoint}")
    raise ExportError(lacks)


def _check_configuration(path: Path, weights: Path | None) -> None:
    """Refuse a file that is no configuration of mmdetection, if its name or its content tells."""
    if weights is not None and weights.suffix in CONFIGURATIONS and path.suffix in (*CHECKPOINTS, ONNX):
        raise ExportError(f"the configuration comes first: m2f export {weights} {path}")
    check_file(path)
    whole = (path.parent / HUGGING_FACE_CONFIG).is_file()
    if whole and (path.name == HUGGING_FACE_CONFIG or path.suffix in (".bin", ".safetensors")):
        raise ExportError(f"{path} is a part of a Hugging Face folder; give the folder: m2f export {path.parent}")
    if path.suffix in (*CHECKPOINTS, ONNX):
        other = f", or its description: m2f export {path} --describe FILE" if path.suffix == ONNX else ""
        raise ExportError(f"{path} needs its configuration too: m2f export CONFIG {path}{other}")
    if path.suffix in _ARCHIVES:
        raise ExportError(f"{path} is an archive: unpack it first")


def _is_detectron2(path: Path) -> bool:
    with path.open("rb") as file:
        return _DETECTRON2.search(file.read(_YAML_BYTES)) is not None
