"""Read an mmdetection configuration: how images are prepared, how logits become instances, what the classes are.

Every option is reproduced as mmdetection 3.3 reads it, or refused (`mmdet_options`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from m2f.limits import MAX_CLASSES, MAX_QUERIES
from m2f.settings import Settings
from m2f_export.export_errors import ExportError, reason
from m2f_export.files import MAX_JSON_BYTES, check_file
from m2f_export.quiet import quiet
from m2f_export.sources import mmdet_options as options
from m2f_export.sources.base import checked_names
from m2f_export.sources.mmcv_ops import ensure_mmcv_ops
from m2f_export.sources.mmdet_options import Place, class_of, named, read_options, whole_number
from m2f_export.sources.mmdet_pipeline import Preparation, read_preparation
from m2f_export.sources.mmseg_config import SEGMENTOR, is_segmentor

ensure_mmcv_ops()

from mmdet.models import Mask2Former, MaskFormer, MaskFormerFusionHead  # noqa: E402
from mmdet.registry import DATASETS, MODELS  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.config.lazy import LazyAttr, LazyObject  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

_READ = ("model", "data_preprocessor", "test_dataloader", "test_pipeline")  # the keys that an export needs
_ARCHITECTURES = f"Mask2Former, MaskFormer, or {SEGMENTOR} of MMSegmentation"
_LISTED_BYTES = 1 << 20  # of a file of class names


class Described(NamedTuple):
    """What a configuration says of a model, apart from its network.

    Attributes:
        kind: the system and the architecture, for people.
        preparation: how an image becomes the network's input.
        settings: the post-processing.
        num_things: number of classes that have instances; they come first.
        num_classes: number of all classes.
        stated_names: their names in the configuration; empty if it states none.
        usual_names: their names in the kind of data set, such as COCO's; empty if it has more or fewer.
        notes: what a user should know, each in a sentence.
        head: the name of the head in the weights.
    """

    kind: str
    preparation: Preparation
    settings: Settings
    num_things: int
    num_classes: int
    stated_names: tuple[str, ...]
    usual_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    head: str = "panoptic_head"


# --- the file --------------------------------------------------------------------------------------------------------


def read_config(path: Path) -> Config:
    """Read the keys of an mmdetection configuration that an export needs; imported classes are resolved.

    Raises:
        ExportError: the file is missing, not a configuration, or not the configuration of a Mask2Former or a
            MaskFormer.
    """
    check_file(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ExportError(f"{path} is larger than a configuration can be: {MAX_JSON_BYTES} bytes")
    init_default_scope("mmdet")
    try:
        with quiet():  # a configuration is a program: it may print, and raise anything
            settings = Config.fromfile(path)
            older = "data" in settings and "test_dataloader" not in settings
            settings = Config({key: _resolved(settings[key]) for key in _READ if key in settings})
    except (Exception, SystemExit) as error:
        raise ExportError(f"{path} is not a configuration that mmengine can read: {_why(error)}") from error
    if older:
        raise ExportError(
            f"{path} is written for mmdetection 2 or MMSegmentation 0: it has 'data' in place of 'test_dataloader'; "
            "allowed: mmdetection 3, MMSegmentation 1"
        )
    model = settings.get("model")
    if not isinstance(model, Mapping) or "type" not in model:
        said = "it has no 'model'" if model is None else "its model has no 'type'"
        raise ExportError(f"{path}: {said}; allowed: {_ARCHITECTURES}")
    if not is_segmentor(model) and class_of(model["type"], MODELS) not in (Mask2Former, MaskFormer):
        raise ExportError(f"{path}: its model is {named(model['type'])}; allowed: {_ARCHITECTURES}")
    return settings


def _resolved(value: Any) -> Any:
    """Return a part of a configuration with the objects that it imports."""
    if isinstance(value, Mapping):
        return {key: _resolved(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_resolved, value))
    return value.build() if isinstance(value, LazyObject | LazyAttr) else value


def _why(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it ends the program"
    if not isinstance(error, ImportError):
        return reason(error)
    # mmengine's own message about `custom_imports` lists the whole search path
    return f"{reason(error.__cause__ or error)}; a module of your own is found if PYTHONPATH has its folder"


# --- the description -------------------------------------------------------------------------------------------------


def describe(settings: Config, file: Path) -> Described:
    """Read everything that a configuration says of a model, apart from its network.

    Args:
        settings: the configuration, as `read_config` returns it.
        file: the configuration's file, for messages.

    Raises:
        ExportError: the server cannot reproduce an option; the message names the file and the key.
    """
    model, place = settings.model, Place(file, "model")
    architecture = class_of(model.type, MODELS)
    assert architecture is not None  # else refused
    num_things, num_classes = _classes(model, place)
    preprocessor, preprocessor_at = _preprocessor(settings, file)
    found = [
        (
            read_preparation(*_pipeline(dataset, at, settings), preprocessor, preprocessor_at),
            _stated_names(dataset.get("metainfo"), at.at("metainfo"), num_classes),
            _usual_names(dataset, num_classes),
        )
        for dataset, at in _datasets(settings, file)
    ]
    if any(each != found[0] for each in found):
        raise ExportError(f"{file}: the data sets of test_dataloader differ in their images or classes; allowed: one")
    preparation, stated_names, usual_names = found[0]
    _check_channels(model.get("backbone"), preparation.preprocessing.channels, place.at("backbone"))
    return Described(
        kind=f"mmdetection {architecture.__name__}",
        preparation=preparation,
        settings=_test_settings(model.get("test_cfg"), place.at("test_cfg")),
        num_things=num_things,
        num_classes=num_classes,
        stated_names=stated_names,
        usual_names=usual_names,
        notes=preparation.notes,
    )


def _check_channels(backbone: object, channels: int, place: Place) -> None:
    """Check that the network takes as many channels as the pipeline loads; 3 is the backbones' own default."""
    stated = backbone.get("in_channels", 3) if isinstance(backbone, Mapping) else channels
    if stated != channels:
        loads = "grey images" if channels == 1 else "colour; give LoadImageFromFile color_type='grayscale'"
        raise place.at("in_channels").refusal(stated, f"{channels}, for the pipeline loads {loads}")


def _classes(model: Mapping[str, Any], place: Place) -> tuple[int, int]:
    """Return how many classes are things, and how many there are."""
    head, at = model.get("panoptic_head"), place.at("panoptic_head")
    if not isinstance(head, Mapping):
        raise at.refusal(head, "a dict")
    fusion, fusion_at = model.get("panoptic_fusion_head", {}), place.at("panoptic_fusion_head")
    if not isinstance(fusion, Mapping):
        raise fusion_at.refusal(fusion, "a dict")
    if class_of(fusion.get("type", MaskFormerFusionHead), MODELS) is not MaskFormerFusionHead:
        raise fusion_at.at("type").refusal(fusion["type"], "'MaskFormerFusionHead'")
    counts = []
    for key, default, first, last in (
        ("num_things_classes", 80, 0, MAX_CLASSES),
        ("num_stuff_classes", 53, 0, MAX_CLASSES),
        ("num_queries", 100, 1, MAX_QUERIES),
    ):
        allowed = whole_number(first, last)
        counts.append(head.get(key, default))
        if not allowed.accepts(counts[-1]):
            raise at.at(key).refusal(counts[-1], allowed.text)
    things, stuff, _ = counts
    if not 1 <= things + stuff <= MAX_CLASSES:
        raise ExportError(f"{at}: {things} things and {stuff} stuff classes; allowed: 1 to {MAX_CLASSES} together")
    return things, things + stuff


def _test_settings(stated: object, place: Place) -> Settings:
    """Return what `MaskFormerFusionHead` reads of its `test_cfg`, with the defaults of that head."""
    test_cfg = read_options({} if stated is None else stated, options.TEST_CFG, place)
    return Settings(
        pre_top_k=test_cfg["max_per_image"],
        panoptic_score_threshold=test_cfg["object_mask_thr"],
        panoptic_overlap_threshold=test_cfg["iou_thr"],
        panoptic_filter_low_score=test_cfg["filter_low_score"],
    )


# --- data sets -------------------------------------------------------------------------------------------------------


def _datasets(settings: Config, file: Path) -> Iterator[tuple[Mapping[str, Any], Place]]:
    """Yield the data sets of the test, without their wrappers; an empty one if the configuration states none."""
    loader, place = settings.get("test_dataloader"), Place(file, "test_dataloader")
    if loader is None:
        loader = {"dataset": {}}
    if not isinstance(loader, Mapping):
        raise place.refusal(loader, "a dict")
    yield from _unwrapped(loader.get("dataset", {}), place.at("dataset"))


def _unwrapped(dataset: object, place: Place) -> Iterator[tuple[Mapping[str, Any], Place]]:
    """Yield the data sets inside wrappers, such as `ConcatDataset` and `RepeatDataset`."""
    if not isinstance(dataset, Mapping):
        raise place.refusal(dataset, "a dict")
    key = next((key for key in ("dataset", "datasets") if key in dataset), None)
    if key is None:
        yield dataset, place
        return
    inner, at = dataset[key], place.at(key)
    if "pipeline" in dataset:  # MultiImageMixDataset
        raise ExportError(f"{place.at('pipeline')} is of a data set that wraps others; allowed: pipelines inside it")
    if key == "dataset":
        yield from _unwrapped(inner, at)
        return
    if not isinstance(inner, list | tuple) or not inner:
        raise at.refusal(inner, "a list of data sets")
    for index, each in enumerate(inner):
        yield from _unwrapped(each, at.at(index))


def _pipeline(dataset: Mapping[str, Any], place: Place, settings: Config) -> tuple[object, Place]:
    """Return the test pipeline of a data set, else the configuration's own, and its key."""
    if "pipeline" not in dataset and "test_pipeline" in settings:
        return settings["test_pipeline"], Place(place.file, "test_pipeline")
    return dataset.get("pipeline", []), place.at("pipeline")


def _preprocessor(settings: Config, file: Path) -> tuple[object, Place]:
    """Return the model's data preprocessor, else the configuration's own, as mmengine does, and its key."""
    place = Place(file, "data_preprocessor")
    if "data_preprocessor" in settings.model or "data_preprocessor" not in settings:
        return settings.model.get("data_preprocessor", {}), Place(file, "model").at("data_preprocessor")
    return settings["data_preprocessor"], place


def _stated_names(metainfo: object, place: Place, num_classes: int) -> tuple[str, ...]:
    """Return the class names that `metainfo` states; empty if it states none.

    Raises:
        ExportError: `metainfo` cannot be read, or states another number of names than the model has classes.
    """
    stated = read_options({} if metainfo is None else metainfo, options.METAINFO, place)
    given = {key: stated[key] for key in ("classes", "CLASSES") if stated[key] is not None}
    names = {key: _listed(value, place.at(key)) for key, value in given.items()}
    for key, value in names.items():
        if len(value) != num_classes:
            allowed = f"{num_classes} names, one for each class of the model"
            if isinstance(given[key], str) and len(value) == 1:
                allowed += "; a file of names is looked for in the current folder"
            raise place.at(key).refusal(given[key], allowed)
    if len(set(names.values())) > 1:
        raise ExportError(f"{place}: classes and CLASSES differ; allowed: one of them")
    return next(iter(names.values()), ())


def _usual_names(dataset: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Return the class names of a kind of data set, such as COCO's; empty if the model has more or fewer."""
    metainfo = getattr(class_of(dataset.get("type"), DATASETS), "METAINFO", None)
    names = metainfo.get("classes") if isinstance(metainfo, Mapping) else None
    return tuple(map(str, names)) if isinstance(names, list | tuple) and len(names) == num_classes else ()


def _listed(value: str | tuple[str, ...] | list[str], place: Place) -> tuple[str, ...]:
    """Return class names; as for mmengine, a string is the path of a file with a name in each line, else one name."""
    if not isinstance(value, str):
        return checked_names(value, str(place))
    path = Path(value)
    try:
        if "\0" in value or not path.is_file():
            return checked_names([value], str(place))
        if path.stat().st_size > _LISTED_BYTES:
            raise place.refusal(value, f"a file of at most {_LISTED_BYTES} bytes")
        return checked_names(path.read_text(encoding="utf-8").splitlines(), str(place))
    except (OSError, UnicodeDecodeError) as error:
        raise place.refusal(value, f"names, or a text file of names ({reason(error)})") from error
