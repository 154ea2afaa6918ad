"""Where the files of a data set are: the annotation file, the folder of the images, and the images in it.

A `file_name` is often written on another machine. It may be a Windows path, an absolute path, or a URL, and it may
begin with the folder of the images.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from m2f_client.evaluation.fields import InvalidDataset

_TASKS = (
    "instances_",
    "panoptic_",
    "person_keypoints_",
    "captions_",
    "image_info_",
    "stuff_",
)  # names of COCO's files
_NAMED = 5  # names that a message lists; it counts the rest
_LONGEST_SHOWN = 300  # characters of a name in a message
_LONGEST_NAME = 4096  # characters: the longest path that Linux opens


def listed(names: Sequence[str]) -> str:
    """Return the first few of `names` as text; a long name loses its middle."""
    more = len(names) - _NAMED
    half = _LONGEST_SHOWN // 2
    short = (name if len(name) <= _LONGEST_SHOWN else f"{name[:half]}…{name[-half:]}" for name in names[:_NAMED])
    return ", ".join(short) + (f" and {more} more" if more > 0 else "")


def annotation_file(path: Path, task: str) -> Path:
    """Return `path`; for a folder the validation file of a task, `instances` or `panoptic`, in it or in `annotations/`.

    Raises:
        InvalidDataset: the folder has no such file, or several.
    """
    if not path.is_dir():
        return path
    files = sorted(path.glob("annotations/*.json")) or sorted(path.glob("*.json"))
    named = [file for file in files if file.name.startswith(f"{task}_")]
    files = named or [file for file in files if not file.name.startswith(_TASKS)]
    chosen = [file for file in files if "val" in file.stem] if len(files) > 1 else files
    if len(chosen) == 1:
        return chosen[0]
    if not files:
        raise InvalidDataset(f"{path} has no annotations/*.json or *.json for {task}; give the annotation file itself")
    names = listed([str(file) for file in files])
    raise InvalidDataset(f"{path} has several annotation files; give one of them: {names}")


def images_folder(path: Path, first: str) -> Path:
    """Return the folder that holds the image `first`, of the usual ones.

    For `data/annotations/instances_val2017.json` these are `data/val2017`, `data/images/val2017`, `data/images`,
    `data`, `data/annotations/images` and `data/annotations`.

    Raises:
        InvalidDataset: the image is in none of these folders.
    """
    split = path.stem.split("_", 1)[-1] if path.stem.startswith(("instances_", "panoptic_")) else path.stem
    root = path.parent.parent
    folders = (root / split, root / "images" / split, root / "images", root, path.parent / "images", path.parent)
    for folder in folders:
        if _is_file(folder / first):
            return folder
    for folder in folders:
        if Finder(folder).find(first) is not None:
            return folder
    tried = ", ".join(str(folder) for folder in folders)
    raise InvalidDataset(f"the images of {path} are not found ({first} is in none of {tried}); say where: --images DIR")


class Finder:
    """Finds files of one folder by names that were written elsewhere."""

    def __init__(self, folder: Path) -> None:
        """Take the files of `folder` and the folders below it."""
        self.folder = folder
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> Path | None:
        r"""Return the file that a name means, or None.

        The name is tried as it is. Then `\` counts as `/`, and folders that do not exist here are dropped from the
        front: `C:\data\val\1.png` is `val/1.png` or `1.png`. Upper and lower case, and the ways to write an accent,
        differ between systems: they do not matter if only one file has the name. At last the name is read as a URL,
        with `%20` for a space.
        """
        if len(name) > _LONGEST_NAME:
            return None
        if _is_file(self.folder / name):
            return self.folder / name
        for text in dict.fromkeys((name, unquote(name))):
            parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")]
            for begin in range(len(parts)):
                found = self._spelled(parts[begin:])
                if found is not None:
                    return found
                if _folded(parts[begin]) in self._names(self.folder):
                    break
        return None

    def _spelled(self, parts: Sequence[str]) -> Path | None:
        """Return the file of these folders and this name, in whatever spelling it has on the disk."""
        path = self.folder
        for part in parts:
            names = self._names(path).get(_folded(part), [])
            if part not in names and len(names) != 1:
                return None
            path /= part if part in names else names[0]
        return path if _is_file(path) else None

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """Return the names in a folder by their folded spelling; none if it cannot be read."""
        if folder not in self._listed:
            spelled: dict[str, list[str]] = {}
            try:
                names = [file.name for file in folder.iterdir()]
            except (OSError, ValueError):
                names = []
            for name in names:
                spelled.setdefault(_folded(name), []).append(name)
            self._listed[folder] = spelled
        return self._listed[folder]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises for a name that is too long)
