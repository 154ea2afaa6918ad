"""Steps that change the size of an image: resize and pad, as mmdetection, detectron2 and Hugging Face do.

Reference: `Resize`, `FixScaleResize`, `ResizeShortestEdge` and `Pad` of mmdetection 3.3 and mmcv 2.1
(`mmcv.imrescale`), detectron2's `ResizeShortestEdge`, and for Hugging Face transformers 5.23 the functions
`get_size_with_aspect_ratio` and `PilBackend.resize`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from m2f.errors import InputError
from m2f.geometry import SizeHW
from m2f.parameters import BOOLEAN, COUNT, Allowed, Parameters, is_int, is_number, one_of, parameter

SIZE_RULES = ("mmdetection", "mmdetection_floor", "detectron2", "huggingface", "huggingface_padded")
_PILLOW_FILTERS = {"pillow_bilinear": Image.Resampling.BILINEAR, "pillow_bicubic": Image.Resampling.BICUBIC}
RESAMPLES = ("opencv_bilinear", *_PILLOW_FILTERS)
Array = npt.NDArray[Any]


def are(accepts: Callable[[Any], bool], *counts: int) -> Callable[[Any], bool]:
    """Return a check for lists of one of some lengths, in which every value is accepted."""
    return lambda value: isinstance(value, tuple | list) and len(value) in counts and all(map(accepts, value))


def or_none(allowed: Allowed) -> Allowed:
    """Allow null, too."""
    return Allowed(f"{allowed.text}, or null", lambda value: value is None or allowed.accepts(value))


SIDES = Allowed("two whole numbers >= 1, such as [256, 256]", are(COUNT.accepts, 2))
LEVELS = Allowed(
    "three whole numbers from 0 to 255, such as [124, 116, 104], or one for grey",
    are(lambda value: is_int(value) and 0 <= value <= 255, 1, 3),
)
_FACTORS = Allowed(
    "two numbers above 0, such as [0.5, 0.5]", are(lambda value: is_number(value) and 0 < value < float("inf"), 2)
)

SCALE = (
    or_none(SIDES),
    "longer and shorter edge that the image must fit in; without `keep_ratio`: width and height; null: no resize",
)


@dataclass(frozen=True, kw_only=True)
class Resize(Parameters):
    """Change the size of an image, by interpolation.

    With `keep_ratio`, `scale` becomes a size by a rule. `mmdetection` rounds, `mmdetection_floor` cuts fractions off.
    `detectron2` rounds as well, but computes the edges in another order. `huggingface` is `longest_edge` and
    `shortest_edge` of Hugging Face's processors: fractions are cut off, and both edges are stretched up to multiples of
    `pad_divisor` instead of being padded; `huggingface_padded` pads. The two filters of Pillow average over all pixels
    that a pixel of a smaller image covers, as Hugging Face's processors do.
    """

    scale: tuple[int, int] | None = parameter(None, *SCALE)
    scale_factor: tuple[float, float] | None = parameter(
        None, or_none(_FACTORS), "factors of width and height, which make a `scale` of each image; needs `scale` null"
    )
    keep_ratio: bool = parameter(True, BOOLEAN, "scale both edges alike; false: stretch to `scale`")
    size_rule: str = parameter(
        "mmdetection",
        one_of(SIZE_RULES),
        "rule for the size: " + ", ".join(f"`{rule}`" for rule in SIZE_RULES),
    )
    resample: str = parameter(
        "opencv_bilinear", one_of(RESAMPLES), "filter: `opencv_bilinear`, `pillow_bilinear` or `pillow_bicubic`"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale and self.scale_factor:
            raise InputError("parameters 'scale' and 'scale_factor' are both set; allowed: one", kind="parameter")

    def result_size(self, height: int, width: int, *, divisor: int = 1, within: SizeHW | None = None) -> SizeHW:
        """Return the (height, width) that an image becomes.

        Args:
            height: height of the image.
            width: width of the image.
            divisor: the rule `huggingface` stretches both edges up to multiples of this number.
            within: largest height and width; a larger image becomes the largest one that fits.
        """
        if self.size_rule == "huggingface" and self.scale and self.keep_ratio:
            return self._huggingface_size(height, width, divisor, within)
        size = self._free_size(height, width)
        if within is None or (size[0] <= within[0] and size[1] <= within[1]):
            return size
        if not self.keep_ratio:
            return min(size[0], within[0]), min(size[1], within[1])
        return _scaled(height, width, min(within[0] / height, within[1] / width))

    def _free_size(self, height: int, width: int) -> SizeHW:
        edges = self.scale
        if self.scale_factor:
            edges = _rounded(width * self.scale_factor[0]), _rounded(height * self.scale_factor[1])
        if edges is None:
            return height, width
        if not self.keep_ratio:
            return edges[1], edges[0]
        if self.size_rule == "huggingface_padded":
            return _aspect_ratio_size(height, width, max(edges), min(edges))
        if self.size_rule == "detectron2":
            return _detectron2_size(height, width, max(edges), min(edges))
        factor = min(max(edges) / max(height, width), min(edges) / min(height, width))
        if self.size_rule == "mmdetection_floor":
            return max(1, int(height * factor)), max(1, int(width * factor))
        return _scaled(height, width, factor)

    def _huggingface_size(self, height: int, width: int, divisor: int, within: SizeHW | None) -> SizeHW:
        assert self.scale is not None  # else the rule is not asked
        target = round_up(*_aspect_ratio_size(height, width, max(self.scale), min(self.scale)), divisor)
        if within and (target[0] > within[0] or target[1] > within[1]):
            # processors have no fixed input, and so no rule for it: take the largest size that fits
            target = round_up(*_scaled(height, width, min(within[0] / height, within[1] / width)), divisor)
        return target

    def apply(self, image: Array, size: SizeHW, *, out: Array | None = None) -> Array:
        """Return the image resized.

        Args:
            image: uint8 or float32, [H, W, 3] or [H, W]; Pillow's filters take uint8 only.
            size: the (height, width) to make, as `result_size` returns it.
            out: memory for the result; None: new memory.
        """
        height, width = size
        if image.shape[:2] == size:
            resized = image
        elif self.resample in _PILLOW_FILTERS:
            resized = np.asarray(Image.fromarray(image).resize((width, height), _PILLOW_FILTERS[self.resample]))
        else:
            return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        return _into(out, resized)


@dataclass(frozen=True, kw_only=True)
class Pad(Parameters):
    """Enlarge an image to the right and below with one colour; the padding then counts as a part of the image."""

    size: tuple[int, int] | None = parameter(None, or_none(SIDES), "smallest height and width of the result")
    divisor: int | None = parameter(None, or_none(COUNT), "divides both edges of the result")
    square: bool = parameter(False, BOOLEAN, "both edges are as long as the longer one")
    value: tuple[int, ...] = parameter((0, 0, 0), LEVELS, "RGB of the padding, before normalisation")

    def result_size(self, height: int, width: int) -> SizeHW:
        """Return the (height, width) that an image becomes."""
        if self.square:
            height = width = max(height, width)
        if self.size:
            height, width = max(height, self.size[0]), max(width, self.size[1])
        return round_up(height, width, self.divisor or 1)

    def apply(self, image: Array, size: SizeHW, *, out: Array | None = None, channel: int | None = None) -> Array:
        """Return the image padded.

        Args:
            image: uint8 or float32, [H, W, 3] or [H, W].
            size: the (height, width) to make, as `result_size` returns it.
            out: memory for the result; None: new memory.
            channel: channel that a plane [H, W] holds; None: the image is whole.
        """
        height, width = image.shape[:2]
        padded = np.empty((*size, *image.shape[2:]), image.dtype) if out is None else out
        padded[:height, :width] = image
        fill_padding(padded, height, width, self.value if channel is None else self.value[channel])
        return padded


def fill_padding(array: Array, height: int, width: int, value: Any) -> None:
    """Fill what is below and to the right of an image of height x width with a colour."""
    line = np.empty(array.shape[1:], array.dtype)  # numpy copies lines much faster than pixels
    line[:] = value
    array[height:] = line
    array[:height, width:] = line[width:]


def round_up(height: int, width: int, divisor: int) -> SizeHW:
    """Round both edges up to multiples of a number; 0 becomes 1 x the number."""
    rows, columns = (max(1, -(-side // divisor)) for side in (height, width))
    return rows * divisor, columns * divisor


def _into(out: Array | None, image: Array) -> Array:
    if out is None:
        return image
    out[:] = image
    return out


def _rounded(edge: float) -> int:
    return max(1, int(edge + 0.5))


def _scaled(height: int, width: int, factor: float) -> SizeHW:
    """Round as `mmcv.rescale_size`."""
    return _rounded(height * factor), _rounded(width * factor)


def _detectron2_size(height: int, width: int, longest: float, shortest: float) -> SizeHW:
    factor = shortest / min(height, width)
    rows, columns = (float(shortest), factor * width) if height < width else (factor * height, float(shortest))
    if max(rows, columns) > longest:
        factor = longest / max(rows, columns)
        rows, columns = rows * factor, columns * factor
    return _rounded(rows), _rounded(columns)


def _aspect_ratio_size(height: int, width: int, longest: int, shortest: int) -> SizeHW:
    """Return the size that transformers gives an image, including its float rounding: 640 may become 639."""
    short, long = min(height, width), max(height, width)
    edge = longest * short / long if long / short * shortest > longest else shortest
    if round(edge) == short:
        return height, width
    other = int(edge * long / short)
    return (other, round(edge)) if width < height else (round(edge), other)
