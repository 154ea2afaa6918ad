"""A COCO data set on disk: its annotation file and its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faster_coco_eval import mask as coco_mask

from m2f.errors import shown
from m2f.limits import MAX_SIDE
from m2f.parameters import is_number
from m2f_client.answer import MAX_PIXELS_SEEN
from m2f_client.evaluation.fields import InvalidDataset, Row, read_json, rows
from m2f_client.evaluation.files import Finder, annotation_file, images_folder, listed
from m2f_client.evaluation.segmentation import MAX_COORDINATE, to_rle

MAX_RLE_BYTES = 1 << 30
"""Largest size of all true masks of a data set together, as compressed RLE."""

_MAX_AREA = 1e10  # largest area that COCOeval counts
_MAX_SEGMENT = (1 << 24) - 1  # a panoptic PNG has three bytes for an id


@dataclass(frozen=True)
class DatasetImage:
    """An image of the data set.

    Attributes:
        id: id in the annotation file.
        path: the image file.
        size: height and width in the annotation file.
    """

    id: int
    path: Path
    size: tuple[int, int]


@dataclass(frozen=True)
class Dataset:
    """Images with their true objects.

    Attributes:
        path: the annotation file.
        images: in the order of the file.
        categories: COCO's category dicts with `id` and `name`, and `isthing` for panoptic data sets; by id.
        annotations: for instances COCO's annotation dicts with `image_id`, `category_id`, `iscrowd`, `segmentation` as
            RLE, `area` and `bbox`; for panoptic data sets the `segments_info` of all images, with `id`, `image_id`,
            `category_id` and `iscrowd`.
        maps: of a panoptic data set the PNG of each image id.
    """

    path: Path
    images: tuple[DatasetImage, ...]
    categories: tuple[dict[str, Any], ...]
    annotations: tuple[dict[str, Any], ...]
    maps: Mapping[int, Path] = field(default_factory=dict)

    def objects(self, image_ids: Container[int]) -> Counter[int]:
        """Return the number of objects of each category id in some images, without crowds."""
        return Counter(a["category_id"] for a in self.annotations if not a["iscrowd"] and a["image_id"] in image_ids)


def read_instances(path: Path, images: Path | None = None) -> Dataset:
    """Read a data set with instance annotations.

    Args:
        path: the annotation file, or a folder with `annotations/*.json` or `*.json`.
        images: folder of the images; None: searched for beside the annotations, see `images_folder`.

    Raises:
        InvalidDataset: the file is not a COCO instance file, or an image is missing; the message names the place.
    """
    path = annotation_file(path, "instances")
    parts = _parts(path)
    found = _images(parts["images"], images, path)
    categories = _categories(parts["categories"], panoptic=False)
    sizes, known = {image.id: image.size for image in found}, {category["id"] for category in categories}
    annotations, rle_bytes = [], 0
    for row in parts["annotations"]:
        annotations.append(_instance(row, sizes, known))
        rle_bytes += len(annotations[-1]["segmentation"]["counts"])
        if rle_bytes > MAX_RLE_BYTES:
            raise row.error(f": the masks up to here take {rle_bytes} bytes as RLE; allowed are {MAX_RLE_BYTES}")
    return Dataset(path, found, _without_unused_doubles(categories, annotations), tuple(annotations))


def read_panoptic(path: Path, images: Path | None = None) -> Dataset:
    """Read a data set with COCO panoptic annotations. The PNGs of `NAME.json` are in the folder `NAME` beside it.

    Args:
        path: the annotation file, or a folder with `annotations/panoptic_*.json`.
        images: folder of the images; None: searched for beside the annotations, see `images_folder`.

    Raises:
        InvalidDataset: the file is not a COCO panoptic file, or an image or a PNG is missing; the message names the
            place.
    """
    path = annotation_file(path, "panoptic")
    parts = _parts(path)
    annotations = list(parts["annotations"])
    for row in annotations:
        if "segmentation" in row.values and "segments_info" not in row.values:
            raise row.invalid("segments_info", "a list of objects; instance annotations need no --panoptic")
    found = _images(parts["images"], images, path)
    categories = _categories(parts["categories"], panoptic=True)
    names, known = {image.id: str(image.path) for image in found}, {category["id"] for category in categories}
    finder, maps = Finder(path.with_suffix("")), {}
    segments: list[dict[str, Any]] = []
    missing = []
    for row in annotations:
        image_id, name = _reference(row, "image_id", names), row.text("file_name")
        if image_id in maps:
            raise row.error(f" is the second one with the image_id {image_id}; allowed: one for each image")
        png = finder.find(name)
        if png is None:
            missing.append(str(finder.folder / name))
        maps[image_id] = png or finder.folder / name
        segments += _segments(row, image_id, known)
    missing += [f"one for {names[image_id]}" for image_id in names if image_id not in maps]
    if missing:
        raise InvalidDataset(f"{len(missing)} panoptic PNGs of {path} are missing: {listed(missing)}")
    return Dataset(path, found, _without_unused_doubles(categories, segments), tuple(segments), maps)


def _parts(path: Path) -> dict[str, Iterable[Row]]:
    """Return the rows of the three lists of an annotation file."""
    document = read_json(path)
    if isinstance(document, list):
        raise InvalidDataset(f"{path} is a list, as COCO results are; the data set is the file with the true objects")
    parts: dict[str, Iterable[Row]] = {}
    for part in ("images", "categories", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(part), list):
            raise InvalidDataset(f"{path} is not a COCO annotation file: it has no list {part!r}")
        parts[part] = rows(f"{path}: {part}", document[part])
        if not document[part] and part != "annotations":
            raise InvalidDataset(f"{path} has no {part}")
    return parts


def _images(image_rows: Iterable[Row], folder: Path | None, path: Path) -> tuple[DatasetImage, ...]:
    finder = Finder(folder) if folder is not None else None
    found, missing = [], []
    named: dict[Path, str] = {}
    ids: dict[int, str] = {}
    for row in image_rows:
        image_id, name = _new_id(row, ids), row.text("file_name")
        size = row.whole("height", 1, MAX_SIDE), row.whole("width", 1, MAX_SIDE)
        if size[0] * size[1] > MAX_PIXELS_SEEN:
            raise row.error(f" has {size[0]} x {size[1]} pixels; allowed are {MAX_PIXELS_SEEN}")
        finder = finder or Finder(images_folder(path, name))
        file = finder.find(name)
        if file is None:
            missing.append(str(finder.folder / name))
        elif named.setdefault(file, name) != name:
            raise row.error(f": the file_name {shown(name)} means {file}, as {shown(named[file])} does")
        found.append(DatasetImage(image_id, file or finder.folder / name, size))
    if missing:
        raise InvalidDataset(f"{len(missing)} of the {len(found)} images of {path} are missing: {listed(missing)}")
    return tuple(found)


def _categories(category_rows: Iterable[Row], *, panoptic: bool) -> list[dict[str, Any]]:
    """Return the categories by id."""
    categories = []
    ids: dict[int, str] = {}
    for row in category_rows:
        category: dict[str, Any] = {"id": _new_id(row, ids), "name": row.text("name")}
        if panoptic:
            category["isthing"] = int(row.flag("isthing"))
        categories.append(category)
    return sorted(categories, key=lambda category: int(category["id"]))


def _without_unused_doubles(
    categories: Sequence[dict[str, Any]], objects: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """Leave out each category without objects whose name another category has, as Roboflow's root category."""
    used = {one["category_id"] for one in objects}
    names = {category["name"] for category in categories if category["id"] in used}
    kept = []
    for category in categories:
        if category["id"] in used or category["name"] not in names:
            kept.append(category)
            names.add(category["name"])
    return tuple(kept)


def _new_id(row: Row, ids: dict[int, str]) -> int:
    """Return the id of an image or a category, which no row before it has."""
    number = row.whole("id")
    if ids.setdefault(number, row.where) != row.where:
        raise row.error(f" has the id of {ids[number]}; allowed: an id of its own")
    return number


def _reference(row: Row, name: str, ids: Container[int]) -> int:
    """Return the id of an image or a category that exists."""
    number = row.whole(name)
    if number not in ids:
        raise row.error(f" has the {name} {number}, which does not exist")
    return number


def _instance(row: Row, sizes: Mapping[int, tuple[int, int]], category_ids: Container[int]) -> dict[str, Any]:
    """Return an annotation with all fields that COCOeval reads."""
    if "segments_info" in row.values and "segmentation" not in row.values:
        raise row.invalid("segmentation", "polygons or RLE; panoptic annotations need --panoptic")
    image_id = _reference(row, "image_id", sizes)
    category_id = _reference(row, "category_id", category_ids)
    rle = to_rle(row, sizes[image_id])
    return {
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": int(row.flag("iscrowd", absent=False)),
        "segmentation": rle,
        "area": row.number("area", 0, _MAX_AREA, absent=float(coco_mask.area(rle))),
        "bbox": _box(row, rle),
    }


def _box(row: Row, rle: dict[str, Any]) -> list[float]:
    """Return the box of an annotation, x y width height; that of its mask if it has none."""
    value = row.values.get("bbox")
    if value is None or value == []:
        box: list[float] = coco_mask.toBbox(rle).tolist()
        return box
    is_box = isinstance(value, list) and len(value) == 4
    if not is_box or not all(is_number(side) and abs(side) <= MAX_COORDINATE for side in value) or min(value[2:]) < 0:
        allowed = f"[x, y, width, height], from -{MAX_COORDINATE} to {MAX_COORDINATE}, width and height >= 0"
        raise row.invalid("bbox", allowed)
    return [float(side) for side in value]


def _segments(row: Row, image_id: int, category_ids: Container[int]) -> list[dict[str, Any]]:
    """Return the segments of one image."""
    segments = []
    ids: dict[int, str] = {}
    for segment in row.rows("segments_info"):
        number = _new_id(segment, ids)
        if not 1 <= number <= _MAX_SEGMENT:
            raise segment.invalid("id", f"a whole number from 1 to {_MAX_SEGMENT}")
        segments.append({
            "id": number,
            "image_id": image_id,
            "category_id": _reference(segment, "category_id", category_ids),
            "iscrowd": int(segment.flag("iscrowd", absent=False)),
        })  # fmt: skip
    return segments
