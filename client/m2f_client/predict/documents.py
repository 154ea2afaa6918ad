"""COCO files of one run or of all shards, written line by line from journals: memory does not grow with the images.

The instances are a COCO data set whose annotations are detections:

    {"info":        {"description": ..., "server": ..., "model": ...},
     "images":      [{"id": 1, "file_name": "as given", "width": w, "height": h}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "score": 0.98, "bbox": [x, y, w, h], "area": 1234,
                      "iscrowd": 0, "segmentation": {"size": [h, w], "counts": "..."}}],
     "categories":  [{"id": 1, "name": "cat"}],             id = class index + 1
     "errors":      [{"file_name": "as given", "reason": "..."}]}

`COCO(path)` reads the document; `COCO(ground_truth).loadRes(document["annotations"])` scores it.

The panoptic segmentation has a document of its own and a PNG for each image, in the format of cocodataset/panopticapi:

    {"info", "images":  as above,
     "annotations": [{"image_id": 1, "file_name": "a_panoptic.png", "segments_info": [{"id": 1, ...}]}],
     "categories":  [{"id": 0, "name": "cat", "isthing": 1}]}    the classes that were found; id = class index
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from m2f_client.converters.coco import CocoDict, class_name
from m2f_client.predict.job import save
from m2f_client.predict.lines import Line


@dataclass(frozen=True)
class Origin:
    """Where the lines of a journal come from.

    Attributes:
        server: address of the server, or of several.
        model: name of the model.
        class_names: the model's class names.
    """

    server: str
    model: str
    class_names: Sequence[str] | None


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Write a file to a `.part` file first: its own name always stands for a complete file.

    Raises:
        M2FError: the file cannot be written.
    """

    def replace(partial_file: Path) -> None:
        write(partial_file)
        partial_file.replace(target)

    save(target.with_name(target.name + ".part"), replace)


def write_instances(stream: TextIO, lines: Iterable[Line], origin: Origin) -> None:
    """Write the instances of all images as one COCO document. `lines` are read several times."""
    class_names = origin.class_names
    labels = range(len(class_names or ()))  # grows with the labels found

    def annotations() -> Iterator[CocoDict]:
        nonlocal labels
        number = 0
        for image_id, line in _numbered(lines):
            for row in line["instances"]:
                number += 1
                labels = range(max(len(labels), row["category_id"]))
                rest = {key: value for key, value in row.items() if key != "name"}
                yield {"id": number, "image_id": image_id, **rest, "iscrowd": 0}

    _write_head(stream, "instances found by m2f", origin)
    _write_list(stream, "images", _images(lines))
    _write_list(stream, "annotations", annotations())
    _write_list(stream, "categories", ({"id": i + 1, "name": class_name(i, class_names)} for i in labels))
    errors = ({"file_name": line["file_name"], "reason": line["error"]} for line in lines if "error" in line)
    _write_list(stream, "errors", errors)
    stream.write("\n}\n")


def write_panoptic(stream: TextIO, lines: Iterable[Line], origin: Origin) -> None:
    """Write the segments of all images as one COCO panoptic document. `lines` are read several times."""
    things: dict[int, int] = {}  # class index -> isthing, of the classes found

    def annotations() -> Iterator[CocoDict]:
        for image_id, line in _numbered(lines):
            things.update({segment["category_id"]: segment.get("isthing", 1) for segment in line["segments_info"]})
            yield {"image_id": image_id, "file_name": line["panoptic"], "segments_info": line["segments_info"]}

    _write_head(stream, "segments found by m2f", origin)
    _write_list(stream, "images", _images(lines))
    _write_list(stream, "annotations", annotations())
    categories = [{"id": i, "name": class_name(i, origin.class_names), "isthing": things[i]} for i in sorted(things)]
    _write_list(stream, "categories", categories)
    stream.write("\n}\n")


def _numbered(lines: Iterable[Line]) -> Iterator[tuple[int, Line]]:
    """Return the lines of the images that worked, each with its image id."""
    return enumerate((line for line in lines if "error" not in line), 1)


def _images(lines: Iterable[Line]) -> Iterator[CocoDict]:
    for image_id, line in _numbered(lines):
        yield {"id": image_id, **{key: line[key] for key in ("file_name", "width", "height")}}


def _write_head(stream: TextIO, description: str, origin: Origin) -> None:
    info = {"description": description, "server": origin.server, "model": origin.model}
    stream.write('{\n"info": ' + json.dumps(info))


def _write_list(stream: TextIO, name: str, rows: Iterable[CocoDict]) -> None:
    """Write one member of the document, each row on a line."""
    stream.write(f',\n"{name}": [')
    separator = "\n "
    for row in rows:
        stream.write(separator + json.dumps(row))
        separator = ",\n "
    stream.write("]")
