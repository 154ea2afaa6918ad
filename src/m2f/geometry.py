"""Map mask cells to pixels of the original image: both bilinear stages and the crop as one sparse operator.

mmdetection upsamples mask logits [h, w] to the padded network input, crops the padding away and resizes to the
original image. Each stage is separable and linear. Per axis, the three stages are therefore one operator of at most
four taps a pixel, and no intermediate image is made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError
from m2f.limits import MAX_SIDE

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Ints = npt.NDArray[np.int64]
SizeHW = tuple[int, int]  # height, width


class AxisGeometry(NamedTuple):
    """The sizes that mask logits pass through along one axis: cells -> padded -> valid -> original.

    Attributes:
        cells: size of the mask logits.
        padded: size of the padded network input.
        valid: size of the image inside the padded network input; the rest is padding.
        original: size of the original image.
    """

    cells: int
    padded: int
    valid: int
    original: int


class ImageGeometry(NamedTuple):
    """The sizes of one image along both axes.

    Attributes:
        rows: sizes along the height.
        columns: sizes along the width.
    """

    rows: AxisGeometry
    columns: AxisGeometry

    @classmethod
    def of(cls, cells: SizeHW, *, img_shape: SizeHW, ori_shape: SizeHW, mask_stride: int = 4) -> ImageGeometry:
        """Check the sizes of an image and put them together by axis.

        Args:
            cells: (height, width) of the mask logits.
            img_shape: (height, width) of the image inside the padded network input.
            ori_shape: (height, width) of the original image.
            mask_stride: network-input pixels per mask cell along each axis.

        Raises:
            InputError: `img_shape` exceeds the network input, or `ori_shape` is not a size that an image can have.
        """
        padded = tuple(mask_stride * side for side in cells)
        if not all(1 <= valid <= side for valid, side in zip(img_shape, padded, strict=True)):
            raise InputError(f"img_shape {tuple(img_shape)} must lie within 1 x 1 and the network input's {padded}")
        if not all(1 <= side <= MAX_SIDE for side in ori_shape):
            raise InputError(f"ori_shape {tuple(ori_shape)} must lie within 1 x 1 and {MAX_SIDE} x {MAX_SIDE}")
        return cls(*map(AxisGeometry, cells, padded, img_shape, ori_shape))

    @property
    def cells(self) -> SizeHW:
        """(height, width) of the mask logits."""
        return self.rows.cells, self.columns.cells

    @property
    def original(self) -> SizeHW:
        """(height, width) of the original image."""
        return self.rows.original, self.columns.original


class Taps(NamedTuple):
    """An operator along one axis: output i is the sum over t of weight[t, i] * values[source[t, i]].

    Attributes:
        source: int64 [T, out], ascending along out; the first tap is the lowest, the last the highest.
        weight: float32 [T, out], sums to 1 over the taps.
    """

    source: Ints
    weight: Floats


def bilinear_taps(size_in: int, size_out: int) -> Taps:
    """Return the two taps per output of `align_corners=False` bilinear interpolation, size_in -> size_out.

    Rounds as torch does in float32 (`area_pixel_compute_source_index` in ATen/native/UpSample.h, where a product
    and a difference are one FMA), so that masks agree to the pixel. If size_in == size_out, both taps of output i
    are input i.
    """
    scale = np.float32(size_in) / np.float32(size_out)
    centre = ((np.arange(size_out) + 0.5) * np.float64(scale) - 0.5).astype(np.float32)  # exact until this rounding
    centre = np.maximum(centre, np.float32(0))
    low = np.minimum(centre.astype(np.int64), size_in - 1)
    high = np.minimum(low + (size_in != size_out), size_in - 1)
    fraction = np.clip(centre - low.astype(np.float32), np.float32(0), np.float32(1))
    return Taps(np.stack([low, high]), np.stack([np.float32(1) - fraction, fraction]))


def mask_taps(axis: AxisGeometry) -> Taps:
    """Compose cells -> padded network input -> crop to the valid part -> original image."""
    upsample, resize = bilinear_taps(axis.cells, axis.padded), bilinear_taps(axis.valid, axis.original)
    if axis.cells == axis.padded:
        return resize
    if axis.valid == axis.original:
        return Taps(upsample.source[:, : axis.valid], upsample.weight[:, : axis.valid])
    source = upsample.source[:, resize.source]  # [2, 2, out]: tap of the upsampling, tap of the resize
    weight = upsample.weight[:, resize.source] * resize.weight
    return Taps(
        source.transpose(1, 0, 2).reshape(4, axis.original),  # the lowest source first, the highest last
        weight.transpose(1, 0, 2).reshape(4, axis.original),
    )


def outputs_reading(taps: Taps, first: int, last: int) -> tuple[int, int]:
    """Return the half-open range of outputs that read any source cell in first..last (inclusive)."""
    begin = int(np.searchsorted(taps.source[-1], first, side="left"))
    end = int(np.searchsorted(taps.source[0], last, side="right"))
    return begin, max(begin, end)


def apply_rows(values: Floats, taps: Taps) -> Floats:
    """Apply taps along the first axis: [in, n] -> [out, n]."""
    result = values[taps.source[0]] * taps.weight[0][:, None]
    for source, weight in zip(taps.source[1:], taps.weight[1:], strict=True):
        result += values[source] * weight[:, None]
    return result
