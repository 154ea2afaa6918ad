"""Turn RGB pixels into the engine's input: mmdetection's keep-ratio resize, padded to the engine's size.

Reference: `Resize` of mmdetection 3.3 (`mmcv.imrescale`, bilinear) and `DetDataPreprocessor`. For models of Hugging
Face transformers 5.23: its image processors, `get_size_with_aspect_ratio` and `PilBackend.resize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from m2f.data_url import decode_data_url, is_data_url
from m2f.errors import InputError, of_image
from m2f.geometry import SizeHW
from m2f.image import Pixels, decode_image
from m2f.limits import MAX_IMAGE_BYTES, MAX_PIXELS
from m2f.parameters import BOOLEAN, COUNT, REQUIRED, Allowed, Parameters, is_int, is_number, one_of, parameter
from m2f.record import phase

LAYOUTS = ("uint8_hwc", "float32_chw")
SIZE_RULES = ("mmdetection", "huggingface")
_PILLOW_FILTERS = {"pillow_bilinear": Image.Resampling.BILINEAR, "pillow_bicubic": Image.Resampling.BICUBIC}
RESAMPLES = ("opencv_bilinear", *_PILLOW_FILTERS)


def _are(accepts: Callable[[Any], bool], count: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple | list) and len(value) == count and all(map(accepts, value))


_SIDES = Allowed("two whole numbers >= 1, such as [256, 256]", _are(COUNT.accepts, 2))
_SIDES_OR_NONE = Allowed(f"{_SIDES.text}, or null", lambda value: value is None or _SIDES.accepts(value))
_RGB = Allowed(
    "three whole numbers from 0 to 255, such as [124, 116, 104]",
    _are(lambda value: is_int(value) and 0 <= value <= 255, 3),
)
_NUMBER = Allowed("a finite number", lambda value: is_number(value) and abs(value) < float("inf"))
_VECTOR = Allowed("three numbers, such as [123.7, 116.3, 103.5]", _are(is_number, 3))


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Parameters):
    """How an image becomes the input that the model was trained on.

    With `keep_ratio`, `scale` becomes a size by one of two rules. `mmdetection` rounds. `huggingface` is
    `longest_edge` and `shortest_edge` of Hugging Face's processors: fractions are cut off, and both edges are stretched
    up to multiples of `pad_divisor` instead of being padded. The two filters of Pillow average over all pixels that a
    pixel of a smaller image covers, as Hugging Face's processors do. `float_resize` is mmdetection's `to_float32`.
    """

    scale: tuple[int, int] = parameter(
        REQUIRED, _SIDES, "longer and shorter edge that the image must fit in; without `keep_ratio`: width and height"
    )
    keep_ratio: bool = parameter(True, BOOLEAN, "scale both edges alike; false: stretch to `scale`; needs `input_size`")
    exif_orientation: bool = parameter(True, BOOLEAN, "turn the image as its EXIF says; false: pixels as stored")
    size_rule: str = parameter("mmdetection", one_of(SIZE_RULES), "rule for the size: `mmdetection` or `huggingface`")
    resample: str = parameter(
        "opencv_bilinear", one_of(RESAMPLES), "filter: `opencv_bilinear`, `pillow_bilinear` or `pillow_bicubic`"
    )
    float_resize: bool = parameter(
        False, BOOLEAN, "a `float32_chw` input is not rounded to whole levels after resizing; needs `opencv_bilinear`"
    )
    input_size: tuple[int, int] | None = parameter(
        None, _SIDES_OR_NONE, "the engine's fixed height and width; null: the next multiples of `pad_divisor`"
    )
    pad_divisor: int = parameter(32, COUNT, "divides both edges of the input, if `input_size` is null")
    pad_value: tuple[int, int, int] = parameter(
        (0, 0, 0), _RGB, "RGB of the padding of a `uint8_hwc` input: the value that normalises to 0"
    )
    float_pad_value: float = parameter(
        0.0, _NUMBER, "all channels of the padding of a `float32_chw` input, after normalisation"
    )
    layout: str = parameter(
        "uint8_hwc", one_of(LAYOUTS), "`uint8_hwc`: the graph normalises; `float32_chw`: normalised here"
    )
    mean: tuple[float, float, float] = parameter((0.0, 0.0, 0.0), _VECTOR, "RGB mean of a `float32_chw` input")
    std: tuple[float, float, float] = parameter(
        (1.0, 1.0, 1.0), _VECTOR, "RGB standard deviation of a `float32_chw` input"
    )
    max_pixels: int = parameter(MAX_PIXELS, COUNT, "largest width x height of an original image")
    max_bytes: int = parameter(MAX_IMAGE_BYTES, COUNT, "largest encoded image, in bytes")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.keep_ratio and self.input_size is None:
            raise InputError("parameter 'keep_ratio' false needs 'input_size'", kind="parameter")
        if self.float_resize and self.resample != RESAMPLES[0]:
            raise InputError(f"parameter 'float_resize' needs 'resample' {RESAMPLES[0]}", kind="parameter")

    @classmethod
    def from_repository(cls, block: Mapping[str, str]) -> Preprocessing:
        """Read a model's `parameters` block; every value is JSON, such as `[256, 256]` or `true`, or a word.

        Raises:
            InputError: a key is unknown, `scale` is missing, or a value is not allowed.
        """
        unknown = sorted(block.keys() - cls.__dataclass_fields__.keys())
        if unknown or "scale" not in block:
            wrong = f"unknown parameter '{unknown[0]}'" if unknown else "parameter 'scale' is missing"
            raise InputError(f"{wrong}; allowed: {', '.join(cls.__dataclass_fields__)}", kind="parameter")
        return super().from_repository(block)

    def __call__(
        self, encoded: Sequence[bytes]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Prepare the images of one request.

        Args:
            encoded: N encoded files, or data URLs of them.

        Returns:
            input: uint8 [N, H, W, 3] or float32 [N, 3, H, W], padded to a common size;
            img_shape: int32 [N, 2], (height, width) of each image inside the input;
            ori_shape: int32 [N, 2], (height, width) of each original image.

        Raises:
            InputError: an image cannot be decoded; if there are several images, the message says which.
        """
        rows, img_shapes, ori_shapes = zip(
            *(self._prepare(data, index, len(encoded)) for index, data in enumerate(encoded)), strict=True
        )
        batch = rows[0][None] if len(rows) == 1 else self._stack(rows, img_shapes)
        if self.layout == "float32_chw":
            batch = batch.transpose(0, 3, 1, 2)
        return batch, np.array(img_shapes, np.int32), np.array(ori_shapes, np.int32)

    def _prepare(self, data: bytes, index: int, count: int) -> tuple[npt.NDArray[Any], SizeHW, SizeHW]:
        """Return one image, padded to a size of its own, its size there, and its original size.

        The full-size pixels are freed on return: memory holds those of one image at a time.
        """
        with phase("decode"), of_image(index, count):
            image = self._decode(data)
        height, width = self.target_size(*image.shape[:2])
        row = self._empty(1, *(self.input_size or self._round_up(height, width)))[0]
        with phase("resize"):
            self._fill(row, image, height, width)
        return row, (height, width), (image.shape[0], image.shape[1])

    def _fill(self, row: npt.NDArray[Any], image: Pixels, height: int, width: int) -> None:
        """Write an image into a row of the input, resized to height x width, and pad the rest."""
        if self.layout == "uint8_hwc":
            self._resize(image, out=row[:height, :width])
        elif self.float_resize:
            self._resize_floats(image, out=row[:height, :width])
        else:
            resized = np.empty((height, width, 3), np.uint8)
            self._resize(image, out=resized)
            self._normalise(resized, out=row[:height, :width])
        self._pad(row, height, width)

    def _decode(self, data: bytes) -> Pixels:
        if is_data_url(data):
            data = decode_data_url(data, max_bytes=self.max_bytes)
        if len(data) > self.max_bytes:
            message = f"the image is too large: {len(data)} bytes encoded; allowed are {self.max_bytes}"
            raise InputError(message, kind="image_too_large")
        return decode_image(data, max_pixels=self.max_pixels, exif_orientation=self.exif_orientation)

    def _stack(self, rows: Sequence[npt.NDArray[Any]], img_shapes: Sequence[SizeHW]) -> npt.NDArray[Any]:
        """Stack rows [H, W, 3] of several sizes to [N, H, W, 3], the largest H and W."""
        height, width, _ = np.max([row.shape for row in rows], axis=0).tolist()
        batch = self._empty(len(rows), height, width)
        for target, row, (valid_height, valid_width) in zip(batch, rows, img_shapes, strict=True):
            target[:valid_height, :valid_width] = row[:valid_height, :valid_width]
            self._pad(target, valid_height, valid_width)
        return batch

    def _empty(self, count: int, height: int, width: int) -> npt.NDArray[Any]:
        """Return memory for an input in its layout; the array is indexed [N, H, W, 3] in both layouts."""
        if self.layout == "uint8_hwc":
            return np.empty((count, height, width, 3), np.uint8)
        return np.empty((count, 3, height, width), np.float32).transpose(0, 2, 3, 1)

    def _resize(self, image: Pixels, *, out: Pixels) -> None:
        height, width = out.shape[:2]
        if image.shape == out.shape:
            out[:] = image
        elif self.resample in _PILLOW_FILTERS:
            out[:] = np.asarray(Image.fromarray(image).resize((width, height), _PILLOW_FILTERS[self.resample]))
        else:
            cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)

    def _resize_floats(self, image: Pixels, *, out: npt.NDArray[np.float32]) -> None:
        """Write a resized image, normalised; memory holds one channel as floats at a time."""
        height, width = out.shape[:2]
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            plane = cv2.resize(cv2.extractChannel(image, channel).astype(np.float32), (width, height))
            out[:, :, channel] = (plane.reshape(height, width) - np.float32(mean)) / np.float32(std)

    def _normalise(self, image: Pixels, *, out: npt.NDArray[np.float32]) -> None:
        """Write (image - mean) / std, by look-up: a channel of uint8 has only 256 values."""
        levels = np.arange(256, dtype=np.uint8)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            normalised = (levels - np.float32(mean)) / np.float32(std)
            cv2.LUT(cv2.extractChannel(image, channel), normalised, dst=out[:, :, channel])

    def _pad(self, row: npt.NDArray[Any], height: int, width: int) -> None:
        """Fill the padding: below the image and to its right."""
        value = self.pad_value if self.layout == "uint8_hwc" else self.float_pad_value
        line = np.full((row.shape[1], 3), value, row.dtype)  # numpy copies lines much faster than pixels
        row[height:] = line
        row[:height, width:] = line[width:]

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that an image is resized to; rounds as `mmcv.rescale_size` by default."""
        if not self.keep_ratio and self.input_size:
            return min(self.scale[1], self.input_size[0]), min(self.scale[0], self.input_size[1])
        if self.size_rule == "huggingface":
            return self._huggingface_size(height, width)
        factor = min(max(self.scale) / max(height, width), min(self.scale) / min(height, width))
        if self.input_size:
            factor = min(factor, self.input_size[0] / height, self.input_size[1] / width)
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def _huggingface_size(self, height: int, width: int) -> tuple[int, int]:
        target = self._round_up(*_aspect_ratio_size(height, width, max(self.scale), min(self.scale)))
        if self.input_size and (target[0] > self.input_size[0] or target[1] > self.input_size[1]):
            # processors have no fixed input, and so no rule for it: take the largest size that fits
            factor = min(self.input_size[0] / height, self.input_size[1] / width)
            target = self._round_up(int(height * factor + 0.5), int(width * factor + 0.5))
        return target

    def _round_up(self, height: int, width: int) -> tuple[int, int]:
        """Round both edges up to multiples of `pad_divisor`; 0 becomes 1 x `pad_divisor`."""
        rows, columns = (max(1, -(-side // self.pad_divisor)) for side in (height, width))
        return rows * self.pad_divisor, columns * self.pad_divisor


def _aspect_ratio_size(height: int, width: int, longest: int, shortest: int) -> tuple[int, int]:
    """Return the size that transformers gives an image, including its float rounding: 640 may become 639."""
    short, long = min(height, width), max(height, width)
    edge = longest * short / long if long / short * shortest > longest else shortest
    if round(edge) == short:
        return height, width
    other = int(edge * long / short)
    return (other, round(edge)) if width < height else (round(edge), other)
