"""Turn encoded images into the engine's input: decode, resize by the model's own steps, pad to the engine's size.

Reference: the test pipelines and `DetDataPreprocessor` of mmdetection 3.3, and the image processors of Hugging Face
transformers 5.23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from m2f.data_url import decode_data_url, is_data_url
from m2f.errors import InputError, of_image, shown
from m2f.geometry import SizeHW
from m2f.image import Pixels, decode_image
from m2f.limits import MAX_IMAGE_BYTES, MAX_INPUT_PIXELS, MAX_PIXELS
from m2f.parameters import BOOLEAN, COUNT, REQUIRED, Allowed, is_number, one_of, parameter
from m2f.record import phase
from m2f.size_steps import LEVELS, RESAMPLES, SCALE, SIDES, Pad, Resize, are, fill_padding, or_none, round_up

LAYOUTS = ("uint8_hwc", "float32_chw")
COLORS = ("rgb", "opencv_grey", "pillow_grey")
_NUMBER = Allowed("a finite number", lambda value: is_number(value) and abs(value) < float("inf"))
_VECTOR = Allowed("three numbers, such as [123.7, 116.3, 103.5], or one for grey", are(is_number, 1, 3))
_STEPS: dict[str, type[Resize] | type[Pad]] = {"resize": Resize, "pad": Pad}
_LIST = Allowed(
    f'a list of steps, such as [{{"step": "pad", "size": [640, 640]}}]; steps: {", ".join(_STEPS)}',
    lambda value: isinstance(value, tuple | list) and all(_is_step(step) for step in value),
)


def channels_of(color: object) -> int:
    """Return the number of channels of a `color`: 1 of grey, else 3."""
    return 1 if color in COLORS[1:] else 3


def _is_step(value: object) -> bool:
    return isinstance(value, Mapping) and value.get("step") in _STEPS


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Resize):
    """How an image becomes the input that the model was trained on.

    The image is resized by the parameters of `Resize`, and changed by the steps of `then`. The result is the image's
    place in the input, `img_shape`; what is beyond it is padding. `float_resize` is mmdetection's `to_float32`.
    """

    scale: tuple[int, int] | None = parameter(REQUIRED, *SCALE)
    then: tuple[Mapping[str, Any], ...] = parameter((), _LIST, "more steps after the resize: `resize` and `pad`")
    exif_orientation: bool = parameter(True, BOOLEAN, "turn the image as its EXIF says; false: pixels as stored")
    color: str = parameter(
        "rgb", one_of(COLORS), "channels of the input: `rgb`, or one of grey, made as OpenCV's `imread` or Pillow does"
    )
    float_resize: bool = parameter(
        False, BOOLEAN, "a `float32_chw` input is not rounded to whole levels after resizing; needs `opencv_bilinear`"
    )
    input_size: tuple[int, int] | None = parameter(
        None, or_none(SIDES), "the engine's fixed height and width; null: the next multiples of `pad_divisor`"
    )
    pad_divisor: int = parameter(32, COUNT, "divides both edges of the input, if `input_size` is null")
    pad_value: tuple[int, ...] = parameter(
        (0, 0, 0), LEVELS, "RGB of the padding of a `uint8_hwc` input: the value that normalises to 0"
    )
    float_pad_value: float = parameter(
        0.0, _NUMBER, "all channels of the padding of a `float32_chw` input, after normalisation"
    )
    layout: str = parameter(
        "uint8_hwc", one_of(LAYOUTS), "`uint8_hwc`: the graph normalises; `float32_chw`: normalised here"
    )
    mean: tuple[float, ...] = parameter((0.0, 0.0, 0.0), _VECTOR, "RGB mean of a `float32_chw` input")
    std: tuple[float, ...] = parameter((1.0, 1.0, 1.0), _VECTOR, "RGB standard deviation of a `float32_chw` input")
    max_pixels: int = parameter(MAX_PIXELS, COUNT, "largest width x height of an original image")
    max_bytes: int = parameter(MAX_IMAGE_BYTES, COUNT, "largest encoded image, in bytes")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std", "pad_value"):
            value = getattr(self, name)
            if value == self.__dataclass_fields__[name].default:
                object.__setattr__(self, name, value[: self.channels])
            elif len(value) != self.channels:
                message = f"parameter '{name}' must have {self.channels} numbers, for 'color' is {self.color}"
                raise InputError(f"{message}; got {shown(value)}", kind="parameter")
        resizes = [step for step in (self, *self.steps) if isinstance(step, Resize)]
        if self.float_resize and any(step.resample != RESAMPLES[0] for step in resizes):
            raise InputError(f"parameter 'float_resize' needs 'resample' {RESAMPLES[0]}", kind="parameter")

    @property
    def channels(self) -> int:
        """Number of channels of the input: 3 of RGB, 1 of grey."""
        return channels_of(self.color)

    @cached_property
    def steps(self) -> tuple[Resize | Pad, ...]:
        """The steps of `then`.

        Raises:
            InputError: a step has an unknown parameter, or a value that is not allowed.
        """
        return tuple(_step(index, stated, self.channels) for index, stated in enumerate(self.then))

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
            input: uint8 [N, H, W, channels] or float32 [N, channels, H, W], padded to a common size;
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
            plan = self._plan(*image.shape[:2])
        height, width = plan[-1][1]
        row = self._empty(1, *(self.input_size or round_up(height, width, self.pad_divisor)))[0]
        with phase("resize"):
            self._fill(row[:height, :width], image, plan)
            self._pad(row, height, width)
        return row, (height, width), (image.shape[0], image.shape[1])

    def _plan(self, height: int, width: int) -> _Plan:
        """Return the steps of an image, each with the (height, width) that it makes.

        Raises:
            InputError: a step makes an image that is too large.
        """
        size = self.result_size(height, width, divisor=self.pad_divisor)
        plan: _Plan = [(self, size)]
        for step in self.steps:
            plan.append((step, step.result_size(*plan[-1][1])))
        if self.input_size and not _fits(plan[-1][1], self.input_size):
            last = plan[-1][0]
            resize = last if isinstance(last, Resize) else _AS_IT_IS
            if last is resize:  # one interpolation in place of two
                plan.pop()
            before = plan[-1][1] if plan else (height, width)
            plan.append((resize, resize.result_size(*before, divisor=self.pad_divisor, within=self.input_size)))
        if self.scale is None or self.then:  # else `scale` limits the size
            largest = max((size for _, size in plan), key=math.prod)
            if math.prod(largest) > MAX_INPUT_PIXELS:
                raise InputError(
                    f"the image is too large: {width} x {height} becomes {largest[1]} x {largest[0]} for the network; "
                    f"allowed are {MAX_INPUT_PIXELS} pixels",
                    kind="image_too_large",
                )
        return plan

    def _fill(self, out: npt.NDArray[Any], image: Pixels, plan: _Plan) -> None:
        """Write an image into its place in a row of the input: out is [height, width, channels]."""
        if self.layout == "uint8_hwc":
            _run(plan, image, out=out if self.channels == 3 else out[:, :, 0])
        elif self.float_resize:
            for channel in range(self.channels):  # memory holds one channel as floats at a time
                plane = _run(plan, _channel(image, channel).astype(np.float32), channel=channel)
                out[:, :, channel] = (plane - np.float32(self.mean[channel])) / np.float32(self.std[channel])
        else:
            self._normalise(_run(plan, image), out=out)

    def _decode(self, data: bytes) -> Pixels:
        if is_data_url(data):
            data = decode_data_url(data, max_bytes=self.max_bytes)
        if len(data) > self.max_bytes:
            message = f"the image is too large: {len(data)} bytes encoded; allowed are {self.max_bytes}"
            raise InputError(message, kind="image_too_large")
        image = decode_image(
            data,
            max_pixels=self.max_pixels,
            exif_orientation=self.exif_orientation,
            grey=self.color == "opencv_grey",
        )
        return np.asarray(Image.fromarray(image).convert("L")) if self.color == "pillow_grey" else image

    def _stack(self, rows: Sequence[npt.NDArray[Any]], img_shapes: Sequence[SizeHW]) -> npt.NDArray[Any]:
        """Stack rows [H, W, channels] of several sizes to [N, H, W, channels], the largest H and W."""
        height, width, _ = np.max([row.shape for row in rows], axis=0).tolist()
        batch = self._empty(len(rows), height, width)
        for target, row, (valid_height, valid_width) in zip(batch, rows, img_shapes, strict=True):
            target[:valid_height, :valid_width] = row[:valid_height, :valid_width]
            self._pad(target, valid_height, valid_width)
        return batch

    def _empty(self, count: int, height: int, width: int) -> npt.NDArray[Any]:
        """Return memory for an input in its layout; the array is indexed [N, H, W, channels] in both layouts."""
        if self.layout == "uint8_hwc":
            return np.empty((count, height, width, self.channels), np.uint8)
        return np.empty((count, self.channels, height, width), np.float32).transpose(0, 2, 3, 1)

    def _normalise(self, image: Pixels, *, out: npt.NDArray[Any]) -> None:
        """Write (image - mean) / std, by look-up: a channel of uint8 has only 256 values."""
        levels = np.arange(256, dtype=np.uint8)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            normalised = (levels - np.float32(mean)) / np.float32(std)
            cv2.LUT(_channel(image, channel), normalised, dst=out[:, :, channel])

    def _pad(self, row: npt.NDArray[Any], height: int, width: int) -> None:
        fill_padding(row, height, width, self.pad_value if self.layout == "uint8_hwc" else self.float_pad_value)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that an image has in the input, without the padding.

        Raises:
            InputError: a step makes an image that is too large.
        """
        return self._plan(height, width)[-1][1]


def _step(index: int, stated: Mapping[str, Any], channels: int) -> Resize | Pad:
    """Return a step of `then`, which JSON states."""
    kind = _STEPS[stated["step"]]
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stated.items()
    }
    del values["step"]
    try:
        if unknown := values.keys() - kind.__dataclass_fields__.keys():
            raise InputError(f"unknown parameter '{min(unknown)}'; allowed: {', '.join(kind.__dataclass_fields__)}")
        step = kind(**values)
        if isinstance(step, Pad) and len(step.value) != channels:
            raise InputError(f"parameter 'value' must have {channels} numbers; got {shown(step.value)}")
    except InputError as error:
        raise InputError(f"parameter 'then', step {index}: {error}", kind="parameter") from error
    return step


def _fits(size: SizeHW, within: SizeHW) -> bool:
    return size[0] <= within[0] and size[1] <= within[1]


def _run(plan: _Plan, image: npt.NDArray[Any], *, out: Any = None, channel: int | None = None) -> npt.NDArray[Any]:
    """Apply the steps of a plan to an image, or to one channel of it; the last step writes into `out`."""
    for index, (step, size) in enumerate(plan):
        last = out if index == len(plan) - 1 else None
        if isinstance(step, Pad):
            image = step.apply(image, size, out=last, channel=channel)
        else:
            image = step.apply(image, size, out=last)
    return image


def _channel(image: npt.NDArray[Any], channel: int) -> npt.NDArray[Any]:
    return image if image.ndim == 2 else cv2.extractChannel(image, channel)


_Plan: TypeAlias = list[tuple[Resize | Pad, SizeHW]]
_AS_IT_IS = Resize()
