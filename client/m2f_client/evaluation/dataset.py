"""A COCO data set on disk: its annotation file and its images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faster_coco_eval import mask as coco_mask

from m2f_client.client_errors import ClientError

_TASKS = (
    "instances_",
    "panoptic_",
    "person_keypoints_",
    "captions_",
    "image_info_",
    "stuff_",
)  # names of COCO's files
_NAMED = 5  # names that a message lists; it counts the rest


class InvalidDataset(ClientError):  # noqa: N818 (as the others of its tree)
    """The data set, or results to compare on it, cannot be used; the message names file and place."""


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
        categories: COCO's category dicts, by id.
        annotations: for instances COCO's annotation dicts, numbered from 1, with `segmentation` as RLE, `area` and
            `bbox`; for panoptic data sets the `segments_info` of all images. Both have `image_id` and `iscrowd`.
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


def listed(names: Sequence[str]) -> str:
    """Return the first few of `names` as text."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def read_instances(path: Path, images: Path | None = None) -> Dataset:
    """Read a data set with instance annotations.

    Args:
        path: the annotation file, or a folder with `annotations/*.json`.
        images: folder of the images; None: searched for beside the annotations, see `images_folder`.

    Raises:
        InvalidDataset: the file is not a COCO instance file, or an image is missing.
    """
    path = annotation_file(path, "instances")
    document = load(path, {"category_id": int, "image_id": int})
    found = _images(path, document, images)
    sizes = {image.id: image.size for image in found}
    _check_references(path, document, document["annotations"], sizes)
    annotations = [_instance(path, i, a, sizes[a["image_id"]]) for i, a in enumerate(document["annotations"])]
    return Dataset(path, found, _categories(document), tuple(annotations))


def read_panoptic(path: Path, images: Path | None = None) -> Dataset:
    """Read a data set with COCO panoptic annotations. The PNGs of `NAME.json` are in the folder `NAME` beside it.

    Args:
        path: the annotation file, or a folder with `annotations/panoptic_*.json`.
        images: folder of the images; None: searched for beside the annotations, see `images_folder`.

    Raises:
        InvalidDataset: the file is not a COCO panoptic file, or an image or a PNG is missing.
    """
    path = annotation_file(path, "panoptic")
    document = load(path, {"image_id": int, "file_name": str, "segments_info": list})
    check_rows(f"{path}: categories", document["categories"], {"isthing": int})
    found = _images(path, document, images)
    segments = []
    for index, annotation in enumerate(document["annotations"]):
        where = f"{path}: annotations[{index}].segments_info"
        check_rows(where, annotation["segments_info"], {"id": int, "category_id": int})
        segments += [{"iscrowd": 0, **one, "image_id": annotation["image_id"]} for one in annotation["segments_info"]]
    _check_references(path, document, segments, {image.id: image.size for image in found})
    maps = {a["image_id"]: path.with_suffix("") / a["file_name"] for a in document["annotations"]}
    missing = [str(png) for png in maps.values() if not png.is_file()]
    missing += [f"one for {image.path}" for image in found if image.id not in maps]
    if missing:
        raise InvalidDataset(f"{len(missing)} panoptic PNGs of {path} are missing: {listed(missing)}")
    return Dataset(path, found, _categories(document), tuple(segments), maps)


def annotation_file(path: Path, task: str) -> Path:
    """Return `path`; for a folder the validation file of a task, `instances` or `panoptic`, in its `annotations/`.

    Raises:
        InvalidDataset: the folder has no such file, or several.
    """
    if not path.is_dir():
        return path
    files = sorted(path.glob("annotations/*.json"))
    named = [file for file in files if file.name.startswith(f"{task}_")]
    files = named or [file for file in files if not file.name.startswith(_TASKS)]
    chosen = [file for file in files if "val" in file.stem] if len(files) > 1 else files
    if len(chosen) == 1:
        return chosen[0]
    if not files:
        raise InvalidDataset(f"{path} has no annotations/*.json for {task}; give the annotation file itself")
    names = listed([str(file) for file in files])
    raise InvalidDataset(f"{path} has several annotation files; give one of them: {names}")


def images_folder(path: Path, first: str) -> Path:
    """Return the folder that holds the image `first`, of the usual ones.

    For `data/annotations/instances_val2017.json` these are `data/val2017`, `data/images/val2017`, `data/images`, `data`
    and `data/annotations`.

    Raises:
        InvalidDataset: the image is in none of these folders.
    """
    split = path.stem.split("_", 1)[-1] if path.stem.startswith(("instances_", "panoptic_")) else path.stem
    root = path.parent.parent
    folders = (root / split, root / "images" / split, root / "images", root, path.parent)
    for folder in folders:
        if (folder / first).is_file():
            return folder
    tried = ", ".join(str(folder) for folder in folders)
    raise InvalidDataset(f"the images of {path} are not found ({first} is in none of {tried}); say where: --images DIR")


def load(path: Path, annotation: dict[str, type]) -> dict[str, Any]:
    """Return the JSON of a COCO annotation file, after checking every field that is read here.

    Args:
        path: the file.
        annotation: fields that each annotation must have, and their types.

    Raises:
        InvalidDataset: the file is not a COCO annotation file; the message names the place.
    """
    document = read_json(path)
    if isinstance(document, list):
        raise InvalidDataset(f"{path} is a list, as COCO results are; the data set is the file with the true objects")
    fields = {
        "images": {"id": int, "file_name": str, "height": int, "width": int},
        "categories": {"id": int, "name": str},
        "annotations": annotation,
    }
    for part, wanted in fields.items():
        if not isinstance(document, dict) or not isinstance(document.get(part), list):
            raise InvalidDataset(f"{path} is not a COCO annotation file: it has no list {part!r}")
        check_rows(f"{path}: {part}", document[part], wanted)
    if not document["images"]:
        raise InvalidDataset(f"{path} has no images")
    return document


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        InvalidDataset: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidDataset(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidDataset(f"{path} is not JSON: {error}") from error


def check_rows(where: str, rows: Sequence[Any], wanted: dict[str, Any]) -> None:
    """Check that each row is a dict with the fields `wanted`, of those types.

    Raises:
        InvalidDataset: a row lacks a field, or has it with another type.
    """
    for index, row in enumerate(rows):
        for name, kind in wanted.items():
            if not isinstance(row, dict) or not isinstance(row.get(name), kind):
                hint = (
                    "; panoptic annotations need --panoptic" if isinstance(row, dict) and "segments_info" in row else ""
                )
                raise InvalidDataset(f"{where}[{index}] has no valid {name!r}{hint}")


def _images(path: Path, document: dict[str, Any], folder: Path | None) -> tuple[DatasetImage, ...]:
    rows = document["images"]
    folder = folder or images_folder(path, rows[0]["file_name"])
    found = tuple(DatasetImage(row["id"], folder / row["file_name"], (row["height"], row["width"])) for row in rows)
    missing = [str(image.path) for image in found if not image.path.is_file()]
    if missing:
        raise InvalidDataset(f"{len(missing)} of the {len(found)} images of {path} are missing: {listed(missing)}")
    if len({image.id for image in found}) < len(found):
        raise InvalidDataset(f"{path}: images share an id")
    return found


def _categories(document: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple(sorted(document["categories"], key=lambda category: category["id"]))


def _check_references(
    path: Path, document: dict[str, Any], objects: Sequence[dict[str, Any]], sizes: dict[int, tuple[int, int]]
) -> None:
    known = {category["id"] for category in document["categories"]}
    for name, ids in (("image_id", sizes), ("category_id", known)):
        for index, row in enumerate(objects):
            if row[name] not in ids:
                raise InvalidDataset(f"{path}: annotations[{index}] has the {name} {row[name]}, which does not exist")


def _instance(path: Path, index: int, annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return an annotation with all fields that COCOeval reads.

    Ids count from 1, because COCOeval takes id 0 for "no match": an annotation with that id would never be found.
    """
    height, width = size
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise InvalidDataset(f"{path}: annotations[{index}] has no segmentation; mask AP needs one for every object")
    try:
        rle = coco_mask.segmToRle(segmentation, width, height)
        area, box = float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise InvalidDataset(f"{path}: annotations[{index}] has an invalid segmentation") from error
    if tuple(rle["size"]) != size:
        raise InvalidDataset(f"{path}: annotations[{index}] is {rle['size']} pixels, its image {list(size)}")
    filled = {"area": area, "bbox": box, "iscrowd": 0, **annotation}
    return {**filled, "id": index + 1, "segmentation": rle}
