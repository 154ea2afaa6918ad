"""A test pipeline and a data preprocessor of mmdetection -> Preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from m2f.preprocess import Preprocessing
from m2f_export.export_errors import ExportError
from m2f_export.sources import mmdet_options as options
from m2f_export.sources.mmcv_ops import ensure_mmcv_ops
from m2f_export.sources.mmdet_options import MAX_INPUT_PIXELS, Place, class_of, named, read_options

ensure_mmcv_ops()

from mmcv.transforms import LoadAnnotations as MmcvLoadAnnotations  # noqa: E402
from mmcv.transforms import LoadImageFromFile  # noqa: E402
from mmcv.transforms import Resize as MmcvResize  # noqa: E402
from mmdet.datasets.transforms import LoadAnnotations, LoadPanopticAnnotations, PackDetInputs, Resize  # noqa: E402
from mmdet.models import DetDataPreprocessor  # noqa: E402
from mmdet.registry import MODELS, TRANSFORMS  # noqa: E402

DIVISOR = 32  # the coarsest feature map is at stride 32
_RGB: TypeAlias = tuple[float, float, float]
_EXACT = 1e-5  # of a level: float32 rounds by more at 255
_LONGEST = 16  # times the shorter edge, where the longer has no limit: as many pixels as 8 images of 2:1

_STEPS: dict[type, options.Table] = {
    LoadImageFromFile: options.LOAD_IMAGE,
    Resize: options.RESIZE,
    MmcvResize: options.RESIZE,
    LoadAnnotations: options.LOAD_ANNOTATIONS,
    MmcvLoadAnnotations: options.LOAD_ANNOTATIONS,
    LoadPanopticAnnotations: options.LOAD_ANNOTATIONS,
    PackDetInputs: options.PACK,
}
_RESAMPLES = {
    "cv2": {"bilinear": "opencv_bilinear"},
    "pillow": {"bilinear": "pillow_bilinear", "bicubic": "pillow_bicubic"},
}


class Preparation(NamedTuple):
    """How an image becomes a network's input.

    Attributes:
        preprocessing: up to normalised RGB.
        takes_bgr: whether the network takes BGR instead.
    """

    preprocessing: Preprocessing
    takes_bgr: bool


class _Step(NamedTuple):
    table: options.Table
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
    load, resize = _steps(pipeline, at)
    values = read_options(preprocessor, options.DATA_PREPROCESSOR, preprocessor_at)
    kind = preprocessor.get("type", DetDataPreprocessor)  # type: ignore[attr-defined]
    if class_of(kind, MODELS) is not DetDataPreprocessor:
        raise preprocessor_at.at("type").refusal(kind, "'DetDataPreprocessor'")
    if values["bgr_to_rgb"] and values["rgb_to_bgr"]:
        raise ExportError(f"{preprocessor_at}: bgr_to_rgb and rgb_to_bgr are both True; allowed: one of them")
    # mmdetection reads BGR. Both options swap; without a swap BGR goes on, with mean and std in that order
    takes_bgr = not (values["bgr_to_rgb"] or values["rgb_to_bgr"])
    scale, size, divisor = _sizes(resize, values["pad_size_divisor"], preprocessor_at.at("pad_size_divisor"))
    mean, std = _normalisation(values, preprocessor_at)
    if takes_bgr:
        mean, std = mean[::-1], std[::-1]
    padding = _pixel(values["pad_value"], mean, std)
    preprocessing = Preprocessing(
        scale=scale,
        keep_ratio=resize.values["keep_ratio"],
        resample=_resample(resize, floats=load["to_float32"]),
        float_resize=load["to_float32"],
        exif_orientation=load["color_type"] == "color",
        input_size=size,
        pad_divisor=divisor,
        layout="uint8_hwc" if padding else "float32_chw",
        pad_value=padding or (0, 0, 0),
        float_pad_value=float(values["pad_value"]),
        mean=mean,
        std=std,
    )
    return Preparation(preprocessing, takes_bgr)


def _steps(pipeline: object, place: Place) -> tuple[dict[str, Any], _Step]:
    """Return the options of LoadImageFromFile, and the step Resize."""
    if not isinstance(pipeline, list | tuple):
        raise place.refusal(pipeline, "a list of steps")
    steps = [_step(step, place.at(index)) for index, step in enumerate(pipeline)]
    resizes = [step for step in steps if step.table is options.RESIZE]
    if len(resizes) != 1:
        raise ExportError(f"{place} needs one Resize with a scale; found {len(resizes) or 'none'}")
    for table, name, index in ((options.LOAD_IMAGE, "LoadImageFromFile", 0), (options.PACK, "PackDetInputs", -1)):
        if any(step.table is table for step in steps if step is not steps[index]):
            raise ExportError(f"{place}: {name} is not the {'last' if index else 'first'} step; allowed: there, once")
    load = steps[0].values if steps[0].table is options.LOAD_IMAGE else read_options({}, options.LOAD_IMAGE, place)
    return load, resizes[0]


def _step(step: object, place: Place) -> _Step:
    stated = step.get("type") if isinstance(step, Mapping) else step
    kind = class_of(stated, TRANSFORMS)
    if not isinstance(step, Mapping) or kind not in _STEPS:
        allowed = ", ".join(dict.fromkeys(each.__name__ for each in _STEPS))
        raise ExportError(f"{place} is a step {named(stated)}; allowed: {allowed}")
    table = _STEPS[kind]
    return _Step(table, read_options(step, table, place), place)


def _resample(resize: _Step, *, floats: bool) -> str:
    backend, interpolation = resize.values["backend"], resize.values["interpolation"]
    if floats and backend == "pillow":
        raise resize.place.at("backend").refusal(backend, "'cv2', for LoadImageFromFile has to_float32")
    filters = _RESAMPLES[backend]
    if interpolation not in filters:
        allowed = " or ".join(map(repr, filters))
        raise resize.place.at("interpolation").refusal(interpolation, f"{allowed} for the backend {backend!r}")
    return filters[interpolation]


def _sizes(resize: _Step, divisor: int, place: Place) -> tuple[tuple[int, int], tuple[int, int] | None, int]:
    """Return scale, input size (None if it is free) and divisor of a Preprocessing.

    Args:
        resize: the step.
        divisor: the configuration's `pad_size_divisor`.
        place: the divisor's key, for messages.
    """
    stated, at = resize.values["scale"], resize.place.at("scale")
    edges = (stated, stated) if isinstance(stated, int) else stated
    if resize.values["keep_ratio"]:
        if divisor % DIVISOR:
            raise place.refusal(divisor, f"a multiple of {DIVISOR}: the network halves its input five times")
        return _within(max(edges), min(edges), at), None, divisor
    if math.inf in edges or math.prod(edges) > MAX_INPUT_PIXELS:
        raise at.refusal(stated, f"at most {MAX_INPUT_PIXELS} pixels, for keep_ratio is False")
    width, height = map(int, edges)
    size = -(-height // divisor) * divisor, -(-width // divisor) * divisor
    if any(side % DIVISOR for side in size):
        raise place.refusal(divisor, f"a multiple of {DIVISOR}, for images of {width} x {height}")
    return (width, height), size, math.lcm(DIVISOR, divisor)


def _within(longer: float, shorter: float, place: Place) -> tuple[int, int]:
    """Return the edges that an image must fit in, within the largest input."""
    if shorter**2 > MAX_INPUT_PIXELS:
        raise place.refusal((longer, shorter), f"at most {MAX_INPUT_PIXELS} pixels")
    if longer * shorter > MAX_INPUT_PIXELS:  # infinity, or a number that means it
        longer = min(_LONGEST * shorter, MAX_INPUT_PIXELS // shorter)
    return int(longer), int(shorter)


def _normalisation(values: dict[str, Any], place: Place) -> tuple[_RGB, _RGB]:
    mean, std = values["mean"], values["std"]
    if mean is None and std is None:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for key, value in (("mean", mean), ("std", std)):
        if value is None:
            raise place.at(key).refusal(value, "numbers, for the other of mean and std has numbers")
    return _channels(mean), _channels(std)


def _channels(values: list[float] | tuple[float, ...]) -> _RGB:
    first, second, third = map(float, values if len(values) == 3 else [*values] * 3)
    return first, second, third


def _pixel(pad_value: float, mean: _RGB, std: _RGB) -> tuple[int, int, int] | None:
    """Return the pixel that normalises to the padding, since padding comes after normalisation; None if there is none.

    The usual padding, 0, is the mean, which is rounded.
    """
    levels = [pad_value * s + m for m, s in zip(mean, std, strict=True)]
    red, green, blue = map(round, levels)
    exact = pad_value == 0 or all(abs(level - round(level)) < _EXACT for level in levels)
    return (red, green, blue) if exact and all(0 <= level <= 255 for level in (red, green, blue)) else None
