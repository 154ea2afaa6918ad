"""A test pipeline and a data preprocessor of mmdetection -> Preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from m2f import size_steps
from m2f.geometry import SizeHW
from m2f.limits import MAX_INPUT_PIXELS
from m2f.preprocess import Preprocessing
from m2f_export.export_errors import ExportError
from m2f_export.sources import mmdet_options as options
from m2f_export.sources.mmcv_ops import ensure_mmcv_ops
from m2f_export.sources.mmdet_options import Place, class_of, named, read_options

ensure_mmcv_ops()

from mmcv.transforms import LoadAnnotations as MmcvLoadAnnotations  # noqa: E402
from mmcv.transforms import LoadImageFromFile  # noqa: E402
from mmcv.transforms import Pad as MmcvPad  # noqa: E402
from mmcv.transforms import Resize as MmcvResize  # noqa: E402
from mmdet.datasets.transforms import (  # noqa: E402
    FixScaleResize,
    LoadAnnotations,
    LoadPanopticAnnotations,
    PackDetInputs,
    Pad,
    Resize,
    ResizeShortestEdge,
)
from mmdet.models import DetDataPreprocessor  # noqa: E402
from mmdet.registry import MODELS, TRANSFORMS  # noqa: E402

DIVISOR = 32  # the coarsest feature map is at stride 32
_Vector: TypeAlias = tuple[float, ...]
_Steps: TypeAlias = Sequence[size_steps.Resize | size_steps.Pad]
_EXACT = 1e-5  # of a level: float32 rounds by more at 255
_LONGEST = 16  # times the shorter edge, where the longer has no limit: as many pixels as 8 images of 2:1

_STEPS: dict[type, options.Table] = {
    LoadImageFromFile: options.LOAD_IMAGE,
    Resize: options.RESIZE,
    MmcvResize: options.RESIZE,
    FixScaleResize: options.RESIZE,
    ResizeShortestEdge: options.SHORTEST_EDGE,
    Pad: options.PAD,
    MmcvPad: options.PAD,
    LoadAnnotations: options.LOAD_ANNOTATIONS,
    MmcvLoadAnnotations: options.LOAD_ANNOTATIONS,
    LoadPanopticAnnotations: options.LOAD_ANNOTATIONS,
    PackDetInputs: options.PACK,
}
_SIZE_STEPS = {kind for kind, table in _STEPS.items() if table in (options.RESIZE, options.SHORTEST_EDGE, options.PAD)}
_RESAMPLES = {
    "cv2": {"bilinear": "opencv_bilinear"},
    "pillow": {"bilinear": "pillow_bilinear", "bicubic": "pillow_bicubic"},
}


class Preparation(NamedTuple):
    """How an image becomes a network's input.

    Attributes:
        preprocessing: up to normalised RGB.
        takes_bgr: whether the network takes BGR instead.
        notes: where the server prepares images in another way, each in a sentence.
    """

    preprocessing: Preprocessing
    takes_bgr: bool
    notes: tuple[str, ...] = ()


class _Stated(NamedTuple):
    """A step of a pipeline as it is stated."""

    kind: type
    values: dict[str, Any]
    place: Place


def read_preparation(pipeline: object, at: Place, preprocessor: object, preprocessor_at: Place) -> Preparation:
    """Translate a test pipeline and a `data_preprocessor`.

    Args:
        pipeline: the steps.
        at: the key of the steps, for messages.
        preprocessor: the data preprocessor.
        preprocessor_at: the key of the data preprocessor, for messages.

    Raises:
        ExportError: the server cannot reproduce a step or an option; the message names the file and the key.
    """
    load, stated = _read_steps(pipeline, at)
    grey = load["color_type"].startswith("grayscale")
    values = read_options(preprocessor, options.DATA_PREPROCESSOR, preprocessor_at)
    kind = preprocessor.get("type", DetDataPreprocessor)  # type: ignore[attr-defined]
    if class_of(kind, MODELS) is not DetDataPreprocessor:
        raise preprocessor_at.at("type").refusal(kind, "'DetDataPreprocessor'")
    takes_bgr = _takes_bgr(values, grey, preprocessor_at)
    mean, std = _normalisation(values, grey, preprocessor_at)
    if takes_bgr:
        mean, std = mean[::-1], std[::-1]
    padding = pixel_of(values["pad_value"], mean, std)
    steps = [_step(each, floats=load["to_float32"], grey=grey) for each in stated]
    size, divisor, notes = _input(steps, values["pad_size_divisor"], preprocessor_at.file)
    resize, then = size_steps.Resize(), steps
    if steps and isinstance(steps[0], size_steps.Resize):
        resize, then = steps[0], steps[1:]
    preprocessing = Preprocessing(
        **{field.name: getattr(resize, field.name) for field in fields(resize)},
        then=tuple(map(_as_json, then)),
        float_resize=load["to_float32"],
        exif_orientation=not load["color_type"].endswith("ignore_orientation"),
        color="opencv_grey" if grey else "rgb",
        input_size=size,
        pad_divisor=divisor,
        layout="uint8_hwc" if padding else "float32_chw",
        pad_value=padding or (0,) * len(mean),
        float_pad_value=float(values["pad_value"]),
        mean=mean,
        std=std,
    )
    return Preparation(preprocessing, takes_bgr, notes)


# --- the pipeline ----------------------------------------------------------------------------------------------------


def _read_steps(pipeline: object, place: Place) -> tuple[dict[str, Any], list[_Stated]]:
    """Return the options of LoadImageFromFile, and the steps that change the size of an image."""
    if not isinstance(pipeline, list | tuple) or not pipeline:
        raise place.refusal(pipeline, "a list of steps, such as LoadImageFromFile, Resize and PackDetInputs")
    steps = [_stated(step, place.at(index)) for index, step in enumerate(pipeline)]
    for kind, index in ((LoadImageFromFile, 0), (PackDetInputs, -1)):
        if any(step.kind is kind for step in steps if step is not steps[index]):
            raise ExportError(
                f"{place}: {kind.__name__} is not the {'last' if index else 'first'} step; allowed: there, once"
            )
    if steps[0].kind is not LoadImageFromFile:
        return read_options({}, options.LOAD_IMAGE, place), [step for step in steps if step.kind in _SIZE_STEPS]
    return steps[0].values, [step for step in steps if step.kind in _SIZE_STEPS]


def _stated(step: object, place: Place) -> _Stated:
    stated = step.get("type") if isinstance(step, Mapping) else step
    kind = class_of(stated, TRANSFORMS)
    if not isinstance(step, Mapping) or kind not in _STEPS:
        random = ", which changes images at random: no result could be repeated" if "Random" in str(stated) else ""
        allowed = ", ".join(dict.fromkeys(each.__name__ for each in _STEPS))
        raise ExportError(f"{place} is a step {named(stated)}{random}; allowed: {allowed}")
    return _Stated(kind, read_options(step, _STEPS[kind], place), place)


def _step(stated: _Stated, *, floats: bool, grey: bool) -> size_steps.Resize | size_steps.Pad:
    if _STEPS[stated.kind] is options.PAD:
        return _pad(stated, grey)
    return _resize(stated, _resample(stated, floats=floats))


def _pad(stated: _Stated, grey: bool) -> size_steps.Pad:
    values, place = stated.values, stated.place
    size, divisor, square = values["size"], values["size_divisor"], values["pad_to_square"]
    if (size is None) == (divisor is None and not square):
        raise ExportError(f"{place}: size {size}, size_divisor {divisor}, pad_to_square {square}; allowed: a size, or "
                          "the others")  # fmt: skip
    color = values["pad_val"].get("img", 0) if isinstance(values["pad_val"], Mapping) else values["pad_val"]
    if grey and not isinstance(color, int):
        raise place.at("pad_val").refusal(values["pad_val"], "one number, for the images are grey")
    color = (color,) * (1 if grey else 3) if isinstance(color, int) else tuple(color)
    return size_steps.Pad(
        size=size and (size[1], size[0]), divisor=divisor, square=square, value=color[::-1]
    )  # mmdetection pads BGR


def _resize(stated: _Stated, resample: str) -> size_steps.Resize:
    values, at = stated.values, stated.place.at("scale")
    scale, factor = values["scale"], values.get("scale_factor")
    if stated.kind is ResizeShortestEdge:
        shortest = scale if isinstance(scale, int) else int(min(scale))
        longest = values["max_size"] or math.inf
        within = within_limits(longest, min(shortest, longest), at)
        return size_steps.Resize(scale=within, size_rule="detectron2", resample=resample)
    rule = "mmdetection_floor" if stated.kind is FixScaleResize else "mmdetection"
    keep_ratio = values["keep_ratio"]
    if scale is None:
        if factor is None:
            raise ExportError(f"{stated.place} has neither scale nor scale_factor; allowed: one of them")
        factors = (float(factor),) * 2 if isinstance(factor, int | float) else (float(factor[0]), float(factor[1]))
        return size_steps.Resize(scale_factor=factors, keep_ratio=keep_ratio, size_rule=rule, resample=resample)
    edges = (scale, scale) if isinstance(scale, int) else scale
    if keep_ratio:
        within = within_limits(max(edges), min(edges), at)
    elif math.inf in edges or math.prod(edges) > MAX_INPUT_PIXELS:
        raise at.refusal(scale, f"at most {MAX_INPUT_PIXELS} pixels, for keep_ratio is False")
    else:
        within = int(edges[0]), int(edges[1])
    return size_steps.Resize(scale=within, keep_ratio=keep_ratio, size_rule=rule, resample=resample)


def _resample(stated: _Stated, *, floats: bool) -> str:
    backend, interpolation = stated.values["backend"], stated.values["interpolation"]
    if floats and backend == "pillow":
        raise stated.place.at("backend").refusal(backend, "'cv2', for LoadImageFromFile has to_float32")
    filters = _RESAMPLES[backend]
    if interpolation not in filters:
        allowed = " or ".join(map(repr, filters))
        raise stated.place.at("interpolation").refusal(interpolation, f"{allowed} for the backend {backend!r}")
    return filters[interpolation]


def within_limits(longer: float, shorter: float, place: Place) -> tuple[int, int]:
    """Return the edges that an image must fit in, within the largest input."""
    if shorter**2 > MAX_INPUT_PIXELS:
        raise place.refusal((longer, shorter), f"at most {MAX_INPUT_PIXELS} pixels")
    if longer * shorter > MAX_INPUT_PIXELS:  # infinity, or a number that means it
        longer = min(_LONGEST * shorter, MAX_INPUT_PIXELS // shorter)
    return int(longer), int(shorter)


def _as_json(step: size_steps.Resize | size_steps.Pad) -> dict[str, Any]:
    """Return a step as a repository states it, without what is at its default."""
    stated: dict[str, Any] = {"step": "pad" if isinstance(step, size_steps.Pad) else "resize"}
    for field in fields(step):
        value = getattr(step, field.name)
        if value != field.default:
            stated[field.name] = list(value) if isinstance(value, tuple) else value
    return stated


# --- the input -------------------------------------------------------------------------------------------------------


def _input(steps: _Steps, divisor: int, file: Path) -> tuple[SizeHW | None, int, tuple[str, ...]]:
    """Return the input's size (None if it is free), what divides its edges, and what to say of that.

    Args:
        steps: the steps that change the size of an image.
        divisor: the configuration's `pad_size_divisor`.
        file: the configuration's file, for people.
    """
    size, multiple = _outcome(steps)
    wider, notes = padded(divisor, file)
    if size is None:
        return None, wider, () if multiple % wider == 0 else notes  # the last step may pad to it
    own = size_steps.round_up(*size, divisor)
    return size_steps.round_up(*own, DIVISOR), wider, notes if any(side % DIVISOR for side in own) else ()


def padded(divisor: int, file: Path) -> tuple[int, tuple[str, ...]]:
    """Return a multiple of 32 that images are padded to, and what to say of it.

    Official configurations of MaskFormer do not pad images: those of mmdetection and MMSegmentation, and the original's
    for COCO. Neither does mmdetection's default. Such a network takes any size. The server pads to multiples of 32.

    Args:
        divisor: what the configuration pads to.
        file: the configuration's file, for people.
    """
    if divisor % DIVISOR == 0:
        return divisor, ()
    wider = math.lcm(divisor, DIVISOR)
    stated = f"pads images to multiples of {divisor}" if divisor > 1 else "does not pad images"
    return wider, (f"{file} {stated}; the server pads them to multiples of {wider}",)


def _outcome(steps: _Steps) -> tuple[SizeHW | None, int]:
    """Return the size that every image becomes, None if sizes vary, and what divides the edges of every image."""
    size: SizeHW | None = None
    largest, multiple = math.inf, 1  # an edge
    for step in steps:
        if isinstance(step, size_steps.Resize):
            largest, multiple = max(step.scale) if step.scale else math.inf, 1
            size = None if step.keep_ratio or step.scale is None else (step.scale[1], step.scale[0])
        else:
            if size is None and step.size and largest <= min(step.size):
                size = step.size
            if size is not None:
                size = step.result_size(*size)
            largest, multiple = math.inf, step.divisor or (multiple if step.square else 1)
    return size, multiple


def _takes_bgr(values: dict[str, Any], grey: bool, place: Place) -> bool:
    if values["bgr_to_rgb"] and values["rgb_to_bgr"]:
        raise ExportError(f"{place}: bgr_to_rgb and rgb_to_bgr are both True; allowed: one of them")
    for key in ("bgr_to_rgb", "rgb_to_bgr"):
        if grey and values[key]:
            raise place.at(key).refusal(True, "False, for the pipeline loads grey images")
    # mmdetection reads BGR. Both options swap; without a swap BGR goes on, with mean and std in that order
    return not (grey or values["bgr_to_rgb"] or values["rgb_to_bgr"])


def _normalisation(values: dict[str, Any], grey: bool, place: Place) -> tuple[_Vector, _Vector]:
    mean, std = values["mean"], values["std"]
    count = 1 if grey else 3
    if mean is None and std is None:
        return (0.0,) * count, (1.0,) * count
    for key, value in (("mean", mean), ("std", std)):
        if value is None:
            raise place.at(key).refusal(value, "numbers, for the other of mean and std has numbers")
        if grey and len(value) != 1:
            raise place.at(key).refusal(value, "one number in a list, for the pipeline loads grey images")
    return _channels(mean, count), _channels(std, count)


def _channels(values: Sequence[float], count: int) -> _Vector:
    return tuple(map(float, values if len(values) == count else [*values] * count))


def pixel_of(pad_value: float, mean: _Vector, std: _Vector) -> tuple[int, ...] | None:
    """Return the pixel that normalises to the padding, since padding comes after normalisation; None if there is none.

    The usual padding, 0, is the mean, which is rounded.
    """
    levels = [pad_value * s + m for m, s in zip(mean, std, strict=True)]
    pixel = tuple(map(round, levels))
    exact = pad_value == 0 or all(abs(level - round(level)) < _EXACT for level in levels)
    return pixel if exact and all(0 <= level <= 255 for level in pixel) else None
