"""The classes of the data sets that detectron2 and Mask2Former register by name.

A configuration of detectron2 names its data set and no classes. Most lists stand in mmdetection, in the same order.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmdet.datasets import (  # noqa: E402
    ADE20KInstanceDataset,
    ADE20KSegDataset,
    CityscapesDataset,
    CocoDataset,
    CocoPanopticDataset,
)


class Classes(NamedTuple):
    """The classes of a data set.

    Attributes:
        names: their names, by label.
        things: labels of the countable classes; None: a semantic data set, which does not say.
    """

    names: tuple[str, ...]
    things: frozenset[int] | None = None


_CITYSCAPES_STUFF = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky",
)  # fmt: skip
_MAPILLARY = (
    "Bird", "Ground Animal", "Curb", "Fence", "Guard Rail", "Barrier", "Wall", "Bike Lane", "Crosswalk - Plain",
    "Curb Cut", "Parking", "Pedestrian Area", "Rail Track", "Road", "Service Lane", "Sidewalk", "Bridge", "Building",
    "Tunnel", "Person", "Bicyclist", "Motorcyclist", "Other Rider", "Lane Marking - Crosswalk",
    "Lane Marking - General", "Mountain", "Sand", "Sky", "Snow", "Terrain", "Vegetation", "Water", "Banner", "Bench",
    "Bike Rack", "Billboard", "Catch Basin", "CCTV Camera", "Fire Hydrant", "Junction Box", "Mailbox", "Manhole",
    "Phone Booth", "Pothole", "Street Light", "Pole", "Traffic Sign Frame", "Utility Pole", "Traffic Light",
    "Traffic Sign (Back)", "Traffic Sign (Front)", "Trash Can", "Bicycle", "Boat", "Bus", "Car", "Caravan",
    "Motorcycle", "On Rails", "Other Vehicle", "Trailer", "Truck", "Wheeled Slow", "Car Mount", "Ego Vehicle",
)  # fmt: skip
_MAPILLARY_THINGS = {0, 1, 8, *range(19, 24), *range(32, 43), *range(44, 58), *range(59, 63)}


def _mmdetections(data_set: type) -> tuple[str, ...]:
    return tuple(name.strip() for name in data_set.METAINFO["classes"])  # type: ignore[attr-defined]


_COCO, _COCO_PANOPTIC = _mmdetections(CocoDataset), _mmdetections(CocoPanopticDataset)
_ADE20K, _ADE20K_THINGS = _mmdetections(ADE20KSegDataset), _mmdetections(ADE20KInstanceDataset)
_CITYSCAPES_THINGS = _mmdetections(CityscapesDataset)
_CITYSCAPES = (*_CITYSCAPES_STUFF, *_CITYSCAPES_THINGS)


def _labels(things: tuple[str, ...], names: tuple[str, ...]) -> frozenset[int]:
    return frozenset(map(names.index, things))


def _all_things(names: tuple[str, ...]) -> Classes:
    """Return the classes of an instance data set."""
    return Classes(names, frozenset(range(len(names))))


_DATA_SETS = {
    r"coco_\d{4}_\w+_panoptic(_\w+)?": Classes(_COCO_PANOPTIC, _labels(_COCO, _COCO_PANOPTIC)),
    r"coco_\d{4}_(train|val|minival|valminusminival)": _all_things(_COCO),
    r"ade20k_instance_(train|val)": _all_things(_ADE20K_THINGS),
    r"ade20k_panoptic_(train|val)": Classes(_ADE20K, _labels(_ADE20K_THINGS, _ADE20K)),
    r"ade20k_sem_seg_(train|val)": Classes(_ADE20K),
    r"cityscapes_fine_instance_seg_(train|val)": _all_things(_CITYSCAPES_THINGS),
    r"cityscapes_fine_panoptic_(train|val)": Classes(_CITYSCAPES, _labels(_CITYSCAPES_THINGS, _CITYSCAPES)),
    r"cityscapes_fine_sem_seg_(train|val)": Classes(_CITYSCAPES),
    r"mapillary_vistas_panoptic_(train|val)": Classes(_MAPILLARY, frozenset(_MAPILLARY_THINGS)),
    r"mapillary_vistas_sem_seg_(train|val)": Classes(_MAPILLARY),
}


def classes_of(data_set: str, count: int) -> Classes:
    """Return the classes of a registered data set; no names if the name is unknown, or the model has more or fewer.

    Args:
        data_set: the name that it is registered by, such as `coco_2017_train_panoptic`.
        count: the number of classes of the model.
    """
    for pattern, classes in _DATA_SETS.items():
        if re.fullmatch(pattern, data_set) and len(classes.names) == count:
            return classes
    return Classes(())
