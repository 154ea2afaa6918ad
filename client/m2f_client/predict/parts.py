"""The journals of all shards of a run, checked: each image is in one of them, once.

A check reads a part line by line and keeps 8 bytes for each of its names, so memory does not grow with the number of
shards.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from m2f.errors import M2FError
from m2f_client.predict.documents import Origin
from m2f_client.predict.lines import Complete, Line, parsed
from m2f_client.predict.shards import Fingerprint, Shard, key_of
from m2f_client.predict.video import source_of

T = TypeVar("T")
_SHOWN = 5  # shards that a message names; it counts the rest
_SAME = {
    "listing": "were given different images ({} and {}; before the colon: how many): run both again with the same",
    "model": "come from different models ({} and {})",
    "parameters": "come from runs with other parameters ({} and {})",
    "tiling": "come from runs that cut pictures differently ({} and {})",
    "class_names": "come from models with other classes",
}


@dataclass(frozen=True)
class Part:
    """The journal of one shard.

    Attributes:
        path: the file.
        shard: the shard.
        end: its last line.
        lines: number of images in it, frames of videos included.
        failed: how many of them failed.
    """

    path: Path
    shard: Shard
    end: Complete
    lines: int
    failed: int


class Parts:
    """The lines of all shards, in the order of the shards. They can be read several times.

    Args:
        paths: the shards' journals, in any order.

    Raises:
        M2FError: a file is no complete journal of a shard; a shard is missing, or there twice; an image is missing,
            there twice, or in the wrong shard; shards come from runs with other sources, models or parameters.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        found = [_checked(path) for path in paths]
        self.parts = sorted(found, key=lambda part: part.shard.index)
        _check_shards(self.parts)
        for name, message in _SAME.items():
            _check_same(self.parts, name, message)

    def __iter__(self) -> Iterator[Line]:
        """Return the lines of all images, those of failed ones included."""
        for part in self.parts:
            yield from _lines(part.path)

    @property
    def origin(self) -> Origin:
        """Where the lines come from."""
        servers = dict.fromkeys(part.end.server for part in self.parts)
        first = self.parts[0].end
        return Origin(", ".join(servers), first.model, first.class_names)

    @property
    def images(self) -> int:
        """Number of images, frames of videos and failed ones included."""
        return sum(part.lines for part in self.parts)

    @property
    def failed(self) -> int:
        """Number of images that failed."""
        return sum(part.failed for part in self.parts)


def _lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for text in file:
            line = parsed(text)
            if isinstance(line, dict):
                yield line


def _checked(path: Path) -> Part:
    """Read a part, and return it if it has all images of its shard, each once."""
    try:
        end = _end(path)
        shard = Shard.parse(end.shard)
        names, sources, failed = array("Q"), array("Q"), 0
        for line in _lines(path):
            if line.get("shard") != end.shard:
                raise M2FError(f"{path}: {line['file_name']} was not written by shard {end.shard}; remove this line")
            source = source_of(line["file_name"])
            names.append(key_of(line["file_name"]))
            sources.append(key_of(source))
            if not shard.has(sources[-1]):
                raise M2FError(f"{path}: {source} does not belong to shard {shard}; remove the file and run it again")
            failed += "error" in line
    except OSError as error:
        raise M2FError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # of Shard.parse
        raise M2FError(f"{path}: its last line is damaged: {error}") from error
    if double := _double(path, names):
        raise M2FError(f"{path} has {double} twice; remove one of the lines")
    _check_images(path, end, np.unique(np.frombuffer(sources, np.uint64)))
    return Part(path, shard, end, len(names), failed)


def _end(path: Path) -> Complete:
    """Return the last line of a part; each line before it must be an image's."""
    end = None
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            line = parsed(text)
            if line is None or end is not None:
                if not text.endswith(b"\n"):
                    break  # the run was killed while it wrote this line
                raise M2FError(f"{path}: line {number} was not written by m2f predict --shard")
            if isinstance(line, Complete):
                end = line
    if end is None:
        raise M2FError(f"{path} is not complete: run its command again, it does the images that are missing")
    return end


def _double(path: Path, names: array[int]) -> str | None:
    """Return the name of an image that is in a part twice; None if there is none."""
    keys, counts = np.unique(np.frombuffer(names, np.uint64), return_counts=True)
    several = set(keys[counts > 1].tolist())
    if not several:
        return None
    seen = Counter(line["file_name"] for line in _lines(path) if key_of(line["file_name"]) in several)
    name, count = seen.most_common(1)[0]
    return name if count > 1 else None  # else two names share a key


def _check_images(path: Path, end: Complete, sources: np.ndarray) -> None:
    there = Fingerprint(len(sources), int(sources.sum(dtype=np.uint64)) if len(sources) else 0)
    if str(there) != end.images:
        of_shard = end.images.partition(":")[0]
        raise M2FError(
            f"{path} has {there.names} of the {of_shard} images of shard {end.shard}, or others than these; "
            "run its command again, and if this does not help, remove the file first"
        )


def _check_shards(parts: Sequence[Part]) -> None:
    """Refuse missing shards, and shards that are there twice."""
    first = parts[0]
    seen: dict[int, Part] = {}
    for part in parts:
        if part.shard.count != first.shard.count:
            raise M2FError(f"{first.path} is shard {first.shard}, and {part.path} is shard {part.shard}")
        if other := seen.get(part.shard.index):
            raise M2FError(f"{other.path} and {part.path} are both shard {part.shard}; give one of them")
        seen[part.shard.index] = part
    missing = [index for index in range(first.shard.count) if index not in seen]
    if missing:
        named = ", ".join(f"{index}/{first.shard.count}" for index in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise M2FError(f"missing: shard {named}{more}; give the journals of all {first.shard.count} shards")


def _check_same(parts: Sequence[Part], name: str, message: str) -> None:
    first, *rest = parts
    expected = getattr(first.end, name)
    for part in rest:
        found = getattr(part.end, name)
        if found != expected:
            raise M2FError(f"{first.path} and {part.path} " + message.format(expected, found))
