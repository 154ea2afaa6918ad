"""`preprocessor_config.json` of a Hugging Face folder -> Preprocessing.

Written against transformers 5.23. What the file leaves out has the default of transformers' own processor, and what
this processor ignores is ignored here, too: the pixels that both make of a picture are compared.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import transformers
from PIL import Image

from m2f.errors import InputError, shown
from m2f.parameters import is_int, is_number
from m2f.preprocess import Preprocessing
from m2f_export.export_errors import ExportError, reason
from m2f_export.files import read_object
from m2f_export.onnx_files import MAX_INPUT_SIDE

FILES = ("preprocessor_config.json", "processor_config.json")  # transformers 5 writes the second for OneFormer
DIVISOR = 32  # the coarsest feature map is at stride 32
_PROCESSORS = (
    "Mask2FormerImageProcessor",
    "MaskFormerImageProcessor",
    "EomtImageProcessor",
    "OneFormerImageProcessor",
)
_FOR_TRAINING = ("class_info_file", "metadata")  # of OneFormer: names for its texts, which transformers would fetch
_TOLERANCE = 1e-4  # of the largest value of an input
_RESAMPLES = {2: "pillow_bilinear", 3: "pillow_bicubic"}  # PIL.Image.Resampling


def read_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file of a folder that describes its image processor, and what it says of it.

    Raises:
        ExportError: there is no such file, or it cannot be read.
    """
    first, second = (folder / name for name in FILES)
    if first.exists() or not second.exists():
        return first, read_object(first)
    settings = read_object(second).get("image_processor")
    if not isinstance(settings, dict):
        raise ExportError(f"{second}: image_processor is {shown(settings)}; allowed: an object, or a {first.name}")
    return second, settings


def read_preprocessing(folder: Path, *, channels: int = 3) -> Preprocessing:
    """Translate the image processor of a folder.

    Args:
        folder: the folder.
        channels: channels of the network's input; 1: images become grey as by Pillow's `convert("L")`.

    Raises:
        ExportError: its file cannot be read, or the server cannot reproduce an option; the message names all of them.
    """
    path, settings = read_settings(folder)
    processor = _make_processor(settings, path)
    problems = _problems(processor, channels)
    if problems:
        raise ExportError(f"{path}: the server cannot reproduce {'; '.join(problems)}")
    mean, std = _normalisation(processor, channels)
    # EoMT pads before the normalisation, the others after it
    pad_value = (0,) * channels if _is_eomt(processor) else tuple(map(round, mean))
    try:
        preprocessing = Preprocessing(
            **_resize_rule(processor),
            resample=_RESAMPLES[processor.resample],
            mean=mean,
            std=std,
            pad_value=pad_value,
            color="pillow_grey" if channels == 1 else "rgb",
        )
    except InputError as error:
        raise ExportError(f"{path}: {error}") from error
    _check_pixels(preprocessing, processor, path)
    return preprocessing


def _check_pixels(preprocessing: Preprocessing, processor: Any, path: Path) -> None:
    """Compare the engine's input for a picture with what transformers' own processor makes of it.

    This finds the options that nothing here knows of.
    """
    picture = np.stack(np.meshgrid(np.arange(41), np.arange(30), [90]), -1)[:, :, 0].astype(np.uint8) * 2
    image = Image.fromarray(picture).convert("L" if preprocessing.channels == 1 else "RGB")
    try:
        wanted = processor([image], return_tensors="np")["pixel_values"][0]
    except Exception as error:  # any value of the file reaches the processor
        raise ExportError(f"{path}: transformers itself cannot use it: {reason(error)}") from error
    (pixels,), ((height, width),), _ = preprocessing([cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes()])
    made = ((pixels - np.array(preprocessing.mean)) / preprocessing.std).transpose(2, 0, 1)
    if _is_oneformer(processor):
        made = made[:, :height, :width]  # of one image it pads nothing
    if wanted.shape != made.shape:
        raise ExportError(f"{path}: transformers makes an input {wanted.shape} of a picture, the server {made.shape}")
    difference = np.abs(wanted - made)[:, :height, :width].max() / np.abs(wanted).max(initial=1)
    if not difference <= _TOLERANCE:
        raise ExportError(f"{path}: pixels differ by {difference:.2g} from those of transformers")


_Vector = tuple[float, ...]


def _normalisation(processor: Any, channels: int) -> tuple[_Vector, _Vector]:
    """Return mean and std of pixels 0 to 255; transformers computes (pixel * rescale_factor - mean) / std."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (0.0,) * channels, (1.0,) * channels
    if processor.do_normalize:
        mean, std = processor.image_mean, processor.image_std
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)


def _make_processor(settings: dict[str, Any], path: Path) -> Any:
    """Build the processor that a file describes: it knows the defaults and the older spellings."""
    stated = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    name = str(stated).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if name not in _PROCESSORS:
        raise ExportError(
            f"{path}: image processor {shown(stated)} is not supported; supported: {', '.join(_PROCESSORS)}"
        )
    try:
        # the variant that needs no torchvision; its pixels are the same
        return getattr(transformers, f"{name}Pil").from_dict(
            {key: value for key, value in settings.items() if key not in _FOR_TRAINING}
        )
    except Exception as error:  # any value of the file reaches constructors
        raise ExportError(f"{path}: transformers cannot make a {name} of it: {reason(error)}") from error


def _is_eomt(processor: Any) -> bool:
    return type(processor).__name__.startswith("Eomt")


def _is_oneformer(processor: Any) -> bool:
    return type(processor).__name__.startswith("OneFormer")


def _problems(processor: Any, channels: int) -> list[str]:
    """Return the options that Preprocessing cannot express."""
    problems = []
    if not processor.do_resize:
        problems.append(f"do_resize {json.dumps(processor.do_resize)}")
    if not is_int(processor.resample) or processor.resample not in _RESAMPLES:
        problems.append(f"resample {shown(processor.resample)} (allowed: 2, bilinear, and 3, bicubic)")
    problems += _normalisation_problems(processor, channels)
    if processor.size is None:
        return [*problems, f"size null (allowed: {_EXACT}, or {_RANGE})"]
    return problems + (_size_problems_of_eomt(processor) if _is_eomt(processor) else _size_problems(processor))


def _normalisation_problems(processor: Any, channels: int) -> list[str]:
    problems = []
    if processor.do_rescale and not _is_positive(processor.rescale_factor):
        problems.append(f"rescale_factor {shown(processor.rescale_factor)} (allowed: a number above 0)")
    if processor.do_normalize:
        count = "three numbers" if channels == 3 else "of a network for grey images one number"
        for name, what, accepts in (
            ("image_mean", "", is_number), ("image_std", " above 0", _is_positive),
        ):  # fmt: skip
            value = getattr(processor, name)
            if not (isinstance(value, list | tuple) and len(value) == channels and all(map(accepts, value))):
                problems.append(f"{name} {shown(value)} (allowed: {count}{what})")
    if not problems and not all(0 <= value <= 255 for value in _normalisation(processor, channels)[0]):
        factor = processor.rescale_factor if processor.do_rescale else 1
        problems.append(f"image_mean {shown(processor.image_mean)} of pixels times {factor:.4g}: it is no colour")
    return problems


def _is_positive(value: object) -> bool:
    return is_number(value) and 0 < value < math.inf  # type: ignore[operator]


def _size_problems(processor: Any) -> list[str]:
    problems = []
    if processor.pad_size:
        problems.append(f"pad_size {_stated(processor.pad_size)}")
    divisor = DIVISOR if _is_oneformer(processor) else processor.size_divisor
    if not (is_int(divisor) and 0 <= divisor <= MAX_INPUT_SIDE):
        return [*problems, f"size_divisor {shown(divisor)} (allowed: a whole number up to {MAX_INPUT_SIDE})"]
    if _is_range(processor.size):
        sides = [divisor or 1]
    elif _is_exact(processor.size):
        sides = list(_resize_rule(processor)["input_size"])
    else:
        return [*problems, f"size {_stated(processor.size)} (allowed: {_EXACT}, or {_RANGE})"]
    if any(side % DIVISOR for side in sides):
        size = _stated(processor.size)
        problems.append(f"size {size} with size_divisor {divisor} (inputs are multiples of {DIVISOR})")
    return problems


def _size_problems_of_eomt(processor: Any) -> list[str]:
    if processor.do_split_image:
        return ["do_split_image true (semantic EoMT: several crops of one image)"]
    size = processor.size
    if not (_is_range(size) if processor.do_pad else _is_exact(size)):
        allowed = f"{_RANGE}, padded, or {_EXACT}, not padded"
        return [f"size {_stated(size)} with do_pad {shown(processor.do_pad)} (allowed: {allowed})"]
    return []


_EXACT, _RANGE = (
    f"height and width up to {MAX_INPUT_SIDE}",
    f"shortest_ and longest_edge, the shortest up to {MAX_INPUT_SIDE}",
)


def _is_exact(size: Any) -> bool:
    """Return whether a size is one that images are stretched to."""
    others = (size.shortest_edge, size.longest_edge, size.max_height, size.max_width)
    return _is_side(size.height) and _is_side(size.width) and not any(others)


def _is_range(size: Any) -> bool:
    """Return whether a size is one that images keep their ratio in."""
    shortest, longest = size.shortest_edge, size.longest_edge
    return _is_side(shortest) and is_int(longest) and shortest <= longest


def _is_side(value: object) -> bool:
    return is_int(value) and 1 <= value <= MAX_INPUT_SIDE  # type: ignore[operator]


def _stated(size: Any) -> str:
    return shown({name: value for name, value in dict(size).items() if value})


def _resize_rule(processor: Any) -> dict[str, Any]:
    """Translate `size` and `size_divisor`."""
    size, divisor = processor.size, getattr(processor, "size_divisor", None) or 1
    if not _is_range(size):
        height, width = (-(-side // divisor) * divisor for side in (size.height, size.width))
        return {"scale": (width, height), "keep_ratio": False, "input_size": (height, width)}
    rule = {"scale": (size.longest_edge, size.shortest_edge), "size_rule": "huggingface", "pad_divisor": divisor}
    if _is_oneformer(processor):
        return rule | {"size_rule": "huggingface_padded", "pad_divisor": DIVISOR}
    return rule | ({"input_size": (size.shortest_edge, size.longest_edge)} if _is_eomt(processor) else {})
