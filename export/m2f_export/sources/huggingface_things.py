"""Which classes of a Hugging Face folder are things, and which are stuff, if its files say so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2f.errors import shown
from m2f.parameters import is_int
from m2f_export.export_errors import ExportError
from m2f_export.files import read_object
from m2f_export.sources.huggingface_folder import CONFIG

FUSED = "label_ids_to_fuse"  # the argument of transformers' post_process_panoptic_segmentation


def read_things(
    folder: Path, config: Mapping[str, Any], processor: Mapping[str, Any], path: Path, *, count: int
) -> frozenset[int] | None:
    """Return the labels of the things, or None if the folder does not say.

    The first of these counts: `label_ids_to_fuse` of the processor or of `config.json`; `thing_ids` in the `metadata`
    of OneFormer's processor; the file in the folder that its `class_info_file` names.

    Args:
        folder: the folder.
        config: its `config.json`.
        processor: what describes its image processor.
        path: the file that `processor` is from.
        count: number of classes.

    Raises:
        ExportError: a label is not one of the model's classes, or a file has another form; the message names the key.
    """
    for where, stated in ((path, processor), (folder / CONFIG, config)):
        if stated.get(FUSED) is not None:
            return frozenset(range(count)) - _labels(stated[FUSED], f"{where}: {FUSED}", count)
    metadata = processor.get("metadata")
    if isinstance(metadata, dict) and "thing_ids" in metadata:
        return _labels(metadata["thing_ids"], f"{path}: metadata.thing_ids", count)
    name = processor.get("class_info_file")
    if isinstance(name, str) and Path(name).name == name and (folder / name).is_file():
        return _things_of_file(folder / name, count)
    return None


def _labels(stated: object, where: str, count: int) -> frozenset[int]:
    if not isinstance(stated, list) or not all(is_int(label) and 0 <= label < count for label in stated):
        raise ExportError(f"{where} is {shown(stated)}; allowed: a list of labels from 0 to {count - 1}")
    return frozenset(stated)


def _things_of_file(path: Path, count: int) -> frozenset[int]:
    """Read `{"0": {"isthing": 1, "name": "person"}, ...}`."""
    things = []
    for key, info in read_object(path).items():
        if not (key.isdecimal() and len(key) <= len(str(count)) and int(key) < count):
            raise ExportError(f"{path}: class {shown(key)}; allowed: the labels 0 to {count - 1}")
        if not isinstance(info, dict) or info.get("isthing") not in (0, 1):
            raise ExportError(f"{path}: class {key} is {shown(info)}; allowed: an object with isthing, 0 or 1")
        if info["isthing"]:
            things.append(int(key))
    return frozenset(things)
