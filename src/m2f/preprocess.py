"""RGB pixels -> engine input: mmdetection's keep-ratio resize, padded to the engine's size.

Reference: `Resize` of mmdetection 3.3 (`mmcv.imrescale`, bilinear) and `DetDataPreprocessor`; for models of
Hugging Face transformers 5.23 its image processors, `get_size_with_aspect_ratio` and `PilBackend.resize`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from m2f.errors import InputError, of_image, shown
from m2f.image import Pixels, decode_image
from m2f.limits import MAX_IMAGE_BYTES, MAX_PIXELS
from m2f.record import phase

LAYOUTS = ("uint8_hwc", "float32_chw")
SIZE_RULES = ("mmdetection", "huggingface")
_PILLOW_FILTERS = {"pillow_bilinear": Image.Resampling.BILINEAR, "pillow_bicubic": Image.Resampling.BICUBIC}
RESAMPLES = ("opencv_bilinear", *_PILLOW_FILTERS)
_CHOICES = {"layout": LAYOUTS, "size_rule": SIZE_RULES, "resample": RESAMPLES}

Size = tuple[int, ...]  # height, width
Vector = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What the model was trained to see.

    Attributes:
        scale: mmdetection's `Resize.scale`: the longer and the shorter edge the image must fit in.
        keep_ratio: scale both edges alike; false stretches to `input_size`.
        size_rule: how `scale` becomes a size. `mmdetection` rounds; `huggingface` is its processors'
            `longest_edge` and `shortest_edge`: it cuts fractions off, then stretches both edges up to
            multiples of `pad_divisor` instead of padding them.
        resample: `opencv_bilinear` as mmdetection; `pillow_bilinear` and `pillow_bicubic` filter over all the
            pixels that a smaller image covers, as Hugging Face's processors do.
        input_size: the engine's fixed height and width; None: the next multiple of `pad_divisor`.
        pad_divisor: both input edges are multiples of it where `input_size` does not fix them.
        pad_value: RGB of the padding in a `uint8_hwc` input, the value that normalises to 0.
        layout: `uint8_hwc` (normalisation is in the graph) or `float32_chw` (normalised here).
        mean, std: RGB normalisation of `float32_chw`.
        max_pixels: larger images are refused by their header.
        max_bytes: larger files are refused unread.
    """

    scale: tuple[int, int]
    keep_ratio: bool = True
    size_rule: str = "mmdetection"
    resample: str = "opencv_bilinear"
    input_size: tuple[int, int] | None = None
    pad_divisor: int = 32
    pad_value: tuple[int, int, int] = (0, 0, 0)
    layout: str = "uint8_hwc"
    mean: Vector = (0.0, 0.0, 0.0)
    std: Vector = (1.0, 1.0, 1.0)
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_IMAGE_BYTES

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"parameter '{name}' must be one of: {', '.join(allowed)}; got {shown(value)}")
        for name in ("max_pixels", "max_bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"parameter '{name}' must be a whole number >= 1; got {shown(value)}")
        if not self.keep_ratio and self.input_size is None:
            raise InputError("parameter 'keep_ratio' false needs 'input_size'")

    @classmethod
    def from_repository(cls, parameters: Mapping[str, str]) -> Preprocessing:
        """Read a model's `parameters` block; every value is JSON, such as `[256, 256]` or `true`.

        Raises:
            InputError: unknown key, missing `scale`, or a value that does not parse.
        """
        unknown = sorted(parameters.keys() - cls.__dataclass_fields__.keys())
        if unknown or "scale" not in parameters:
            wrong = f"unknown parameter '{unknown[0]}'" if unknown else "parameter 'scale' is missing"
            raise InputError(f"{wrong}; allowed: {', '.join(cls.__dataclass_fields__)}")
        return cls(**{name: _parse(name, text) for name, text in parameters.items()})

    def __call__(
        self, encoded: Sequence[bytes]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Prepare the images of one request.

        Args:
            encoded: N files.

        Returns:
            input: uint8 [N, H, W, 3] or float32 [N, 3, H, W], padded to a common size;
            img_shape: int32 [N, 2], height and width of each image inside the input;
            ori_shape: int32 [N, 2], height and width of each original image.

        Raises:
            InputError: an image that cannot be decoded; the message says which when there are several.
        """
        rows, img_shapes, ori_shapes = zip(
            *(self._prepare(data, index, len(encoded)) for index, data in enumerate(encoded)), strict=True
        )
        batch = rows[0][None] if len(rows) == 1 else self._stack(rows, img_shapes)
        if self.layout == "float32_chw":
            batch = batch.transpose(0, 3, 1, 2)
        return batch, np.array(img_shapes, np.int32), np.array(ori_shapes, np.int32)

    def _prepare(self, data: bytes, index: int, count: int) -> tuple[npt.NDArray[Any], Size, Size]:
        """Return the row of one image, padded to a size of its own, and the sizes of the image in it and before.

        Only here the full-size pixels exist, so those of one image at a time.
        """
        with phase("decode"), of_image(index, count):
            image = self._decode(data)
        height, width = self.target_size(*image.shape[:2])
        row = self._empty(1, *(self.input_size or self._round_up(height, width)))[0]
        with phase("resize"):
            self._fill(row, image, height, width)
        return row, (height, width), image.shape[:2]

    def _fill(self, row: npt.NDArray[Any], image: Pixels, height: int, width: int) -> None:
        """Write an image into a row, resized to a size, and padding around it."""
        if self.layout == "uint8_hwc":
            self._resize(image, out=row[:height, :width])
        else:
            resized = np.empty((height, width, 3), np.uint8)
            self._resize(image, out=resized)
            self._normalise(resized, out=row[:height, :width])
        self._pad(row, height, width)

    def _decode(self, data: bytes) -> Pixels:
        if len(data) > self.max_bytes:
            message = f"the image is too large: {len(data)} bytes encoded; allowed are {self.max_bytes}"
            raise InputError(message, kind="image_too_large")
        return decode_image(data, max_pixels=self.max_pixels)

    def _stack(self, rows: Sequence[npt.NDArray[Any]], img_shapes: Sequence[Size]) -> npt.NDArray[Any]:
        """Return rows [H, W, 3] of several sizes as one array [N, H, W, 3] as large as the largest."""
        height, width, _ = np.max([row.shape for row in rows], axis=0).tolist()
        batch = self._empty(len(rows), height, width)
        for target, row, (valid_height, valid_width) in zip(batch, rows, img_shapes, strict=True):
            target[:valid_height, :valid_width] = row[:valid_height, :valid_width]
            self._pad(target, valid_height, valid_width)
        return batch

    def _empty(self, count: int, height: int, width: int) -> npt.NDArray[Any]:
        """Return memory for an input in its layout, indexed [N, H, W, 3] in either."""
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

    def _normalise(self, image: Pixels, *, out: npt.NDArray[np.float32]) -> None:
        """Write (image - mean) / std: a look-up, for a channel of uint8 has but 256 values."""
        levels = np.arange(256, dtype=np.uint8)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            normalised = (levels - np.float32(mean)) / np.float32(std)
            cv2.LUT(cv2.extractChannel(image, channel), normalised, dst=out[:, :, channel])

    def _pad(self, row: npt.NDArray[Any], height: int, width: int) -> None:
        """Fill what the image leaves free: below it and to its right."""
        value = self.pad_value if self.layout == "uint8_hwc" else (0, 0, 0)
        line = np.full((row.shape[1], 3), value, row.dtype)  # numpy copies lines many times faster than pixels
        row[height:] = line
        row[:height, width:] = line[width:]

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width an image is resized to; `mmcv.rescale_size`'s rounding by default."""
        if not self.keep_ratio and self.input_size:
            return self.input_size
        if self.size_rule == "huggingface":
            return self._huggingface_size(height, width)
        factor = min(max(self.scale) / max(height, width), min(self.scale) / min(height, width))
        if self.input_size:
            factor = min(factor, self.input_size[0] / height, self.input_size[1] / width)
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def _huggingface_size(self, height: int, width: int) -> tuple[int, int]:
        target = self._round_up(*_aspect_ratio_size(height, width, max(self.scale), min(self.scale)))
        if self.input_size and (target[0] > self.input_size[0] or target[1] > self.input_size[1]):
            # a processor has no fixed input, so there is no rule to follow: the largest that fits
            factor = min(self.input_size[0] / height, self.input_size[1] / width)
            target = self._round_up(int(height * factor + 0.5), int(width * factor + 0.5))
        return target

    def _round_up(self, height: int, width: int) -> tuple[int, int]:
        """Return the next multiples of `pad_divisor`, at least one."""
        rows, columns = (max(1, -(-side // self.pad_divisor)) for side in (height, width))
        return rows * self.pad_divisor, columns * self.pad_divisor


def _aspect_ratio_size(height: int, width: int, longest: int, shortest: int) -> tuple[int, int]:
    """Return transformers' size for an image, its float rounding included (640 may come out as 639)."""
    short, long = min(height, width), max(height, width)
    edge = longest * short / long if long / short * shortest > longest else shortest
    if round(edge) == short:
        return height, width
    other = int(edge * long / short)
    return (other, round(edge)) if width < height else (round(edge), other)


def _parse(name: str, text: str) -> Any:
    if name in _CHOICES:
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise InputError(
            f"parameter '{name}' must be JSON, such as 32, true or [256, 256]; got {shown(text)}"
        ) from None
    return tuple(value) if isinstance(value, list) else value
