"""COCO files of a whole run, written line by line from its journal: memory does not grow with the number of images.

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
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from m2f_client.client import Client
from m2f_client.converters.coco import CocoDict, class_name
from m2f_client.predict.journal import Journal, Line


def write_instances(stream: TextIO, journal: Journal, class_names: Sequence[str] | None, client: Client) -> None:
    """Write the instances of all images as one COCO document. `client` names server and model."""
    labels = range(len(class_names or ()))  # grows with the labels found

    def annotations() -> Iterator[CocoDict]:
        nonlocal labels
        number = 0
        for image_id, line in _numbered(journal):
            for row in line["instances"]:
                number += 1
                labels = range(max(len(labels), row["category_id"]))
                rest = {key: value for key, value in row.items() if key != "name"}
                yield {"id": number, "image_id": image_id, **rest, "iscrowd": 0}

    _write_head(stream, "instances found by m2f", client)
    _write_list(stream, "images", _images(journal))
    _write_list(stream, "annotations", annotations())
    _write_list(stream, "categories", ({"id": i + 1, "name": class_name(i, class_names)} for i in labels))
    errors = ({"file_name": line["file_name"], "reason": line["error"]} for line in journal if "error" in line)
    _write_list(stream, "errors", errors)
    stream.write("\n}\n")


def write_panoptic(stream: TextIO, journal: Journal, class_names: Sequence[str] | None, client: Client) -> None:
    """Write the segments of all images as one COCO panoptic document. `client` names server and model."""
    things: dict[int, int] = {}  # class index -> isthing, of the classes found

    def annotations() -> Iterator[CocoDict]:
        for image_id, line in _numbered(journal):
            things.update({segment["category_id"]: segment.get("isthing", 1) for segment in line["segments_info"]})
            yield {"image_id": image_id, "file_name": line["panoptic"], "segments_info": line["segments_info"]}

    _write_head(stream, "segments found by m2f", client)
    _write_list(stream, "images", _images(journal))
    _write_list(stream, "annotations", annotations())
    categories = [{"id": i, "name": class_name(i, class_names), "isthing": things[i]} for i in sorted(things)]
    _write_list(stream, "categories", categories)
    stream.write("\n}\n")


def _numbered(journal: Journal) -> Iterator[tuple[int, Line]]:
    """Return the lines of the images that worked, each with its image id."""
    return enumerate((line for line in journal if "error" not in line), 1)


def _images(journal: Journal) -> Iterator[CocoDict]:
    for image_id, line in _numbered(journal):
        yield {"id": image_id, **{key: line[key] for key in ("file_name", "width", "height")}}


def _write_head(stream: TextIO, description: str, client: Client) -> None:
    info = {"description": description, "server": client.url, "model": client.model}
    stream.write('{\n"info": ' + json.dumps(info))


def _write_list(stream: TextIO, name: str, rows: Iterable[CocoDict]) -> None:
    """Write one member of the document, each row on a line."""
    stream.write(f',\n"{name}": [')
    separator = "\n "
    for row in rows:
        stream.write(separator + json.dumps(row))
        separator = ",\n "
    stream.write("]")
