r"""The lines of a run's journal: what they hold, and how they are read.

    {"file_name": "a.jpg", "model": "mask2former", "parameters": {...},
     "width": 640, "height": 480,
     "instances": [{"category_id": 1, "name": "cat", "score": 0.98, "bbox": [x, y, w, h], "area": 1234,
                    "segmentation": {"size": [h, w], "counts": "..."}}],
     "overlay": "a_overlay.png", "logits": "a.npz", "panoptic": "a_panoptic.png", "segments_info": [...],
     "geojson": "a.geojson"}
    {"file_name": "b.jpg", "model": "mask2former", "parameters": {...}, "error": "not a JPEG, PNG or WebP"}

The lines of a run in tiles state how pictures were cut: `"tiling": {"tile": 1024, "overlap": 0.2, "whole": false}`.
The lines of a shard state it: `"shard": "3/8"`. Once all its images have a line, a last line says so; see `Complete`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

Line = dict[str, Any]
ARTEFACTS = ("overlay", "logits", "panoptic", "geojson")
_STARTS = (b'{"file_name": ', b'{"complete": ')  # of the lines that a run writes
_LARGEST_SIDE = 2**31 - 1
_LARGEST_AREA = 2**63 - 1


@dataclass(frozen=True)
class Complete:
    """The last line of a shard's journal: each image of the shard has a line before it.

    Attributes:
        shard: the shard, such as `3/8`.
        images: fingerprint of the shard's sources.
        listing: fingerprint of the sources of all shards. It differs if the shards did not see the same images.
        model: name of the model.
        parameters: request parameters.
        server: address of the server.
        class_names: the model's class names.
        tiling: how the pictures were cut; None: they were not.
    """

    shard: str
    images: str
    listing: str
    model: str
    parameters: Mapping[str, Any]
    server: str
    class_names: Sequence[str] | None
    tiling: Mapping[str, Any] | None = None


def parsed(text: bytes) -> Line | Complete | None:
    """Return a line of a journal; None if the text is incomplete or not such a line."""
    if not text.endswith(b"\n"):
        return None
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    if "complete" in line:
        return _completed(line["complete"])
    return line if _is_line(line) else None


def is_cut(text: bytes) -> bool:
    """Say whether a text may be the beginning of a line that a killed run wrote."""
    return not text.endswith(b"\n") and any(text.startswith(start) or start.startswith(text) for start in _STARTS)


def _completed(stated: object) -> Complete | None:
    """Return what the last line of a shard states; None if its members are not those of `Complete`."""
    if not isinstance(stated, dict) or {"tiling", *stated} != {field.name for field in fields(Complete)}:
        return None
    whole = all(isinstance(stated[name], str) for name in ("shard", "images", "listing", "model", "server"))
    whole = whole and isinstance(stated["parameters"], dict) and isinstance(stated.get("tiling", {}), dict | None)
    names = stated["class_names"]
    whole = whole and (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)))
    return Complete(**stated) if whole else None


def _is_line(line: Line) -> bool:
    """Say whether the members of an image's line are there, and are of the right type."""
    whole = isinstance(line.get("file_name"), str) and isinstance(line.get("parameters"), dict)
    whole = whole and all(isinstance(line.get(name, ""), str) for name in ("model", "shard", "error"))
    whole = whole and isinstance(line.get("tiling", {}), dict)
    whole = whole and all(_is_name(line[kind]) for kind in ARTEFACTS if kind in line)
    if not whole or "error" in line:
        return whole
    found, segments = line.get("instances"), line.get("segments_info", [])
    whole = _is_count(line.get("width")) and _is_count(line.get("height"))
    whole = whole and isinstance(found, list) and all(map(_is_instance, found))
    return whole and isinstance(segments, list) and all(map(_is_segment, segments))


def _is_instance(row: object) -> bool:
    if not isinstance(row, dict) or not _is_count(row.get("category_id")) or not isinstance(row.get("name"), str):
        return False
    box, area, mask = row.get("bbox"), row.get("area", 0), row.get("segmentation", {"counts": ""})
    whole = _is_number(row.get("score")) and isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
    whole = whole and type(area) is int and 0 <= area <= _LARGEST_AREA
    return whole and isinstance(mask, dict) and isinstance(mask.get("counts"), str)


def _is_segment(row: object) -> bool:
    return isinstance(row, dict) and isinstance(row.get("category_id"), int)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_SIDE


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_name(value: object) -> bool:
    """Say whether a value names a file in the run's folder. A forged journal could name files elsewhere."""
    return isinstance(value, str) and Path(value).name == value
