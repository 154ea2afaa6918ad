"""Where an output pixel reads the engine's masks: both bilinear stages and the crop as one sparse operator.

mmdetection upsamples mask logits [h, w] to the padded network input, crops the padding away and resizes to
the original image. Each stage is separable and linear, so per axis the three are one operator with at most
four taps a row, and no picture in between is ever made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Taps(NamedTuple):
    """One axis of the operator: output i is the sum over t of weight[t, i] * values[source[t, i]].

    Attributes:
        source: int64 [T, out], ascending along out; the first tap is the lowest, the last the highest.
        weight: float32 [T, out], sums to 1 over the taps.
    """

    source: Ints
    weight: Floats


def bilinear_taps(size_in: int, size_out: int) -> Taps:
    """Return the two taps a row of `align_corners=False` bilinear interpolation, size_in -> size_out.

    Rounds as torch does in float32 (`area_pixel_compute_source_index` in ATen/native/UpSample.h, where a product
    and a difference are one FMA), so that masks agree to the pixel. Where nothing is resized, both taps are the
    output's own input.
    """
    scale = np.float32(size_in) / np.float32(size_out)
    centre = ((np.arange(size_out) + 0.5) * np.float64(scale) - 0.5).astype(np.float32)  # exact until it is rounded
    centre = np.maximum(centre, np.float32(0))
    low = np.minimum(centre.astype(np.int64), size_in - 1)
    high = np.minimum(low + (size_in != size_out), size_in - 1)
    fraction = np.clip(centre - low.astype(np.float32), np.float32(0), np.float32(1))
    return Taps(np.stack([low, high]), np.stack([np.float32(1) - fraction, fraction]))


def mask_taps(*, cells: int, padded: int, valid: int, original: int) -> Taps:
    """Compose cells -> padded network input -> crop to the valid part -> original image, along one axis.

    Args:
        cells: size of the mask logits.
        padded: size of the padded network input.
        valid: part of it that holds the image.
        original: size of the original image.
    """
    upsample, resize = bilinear_taps(cells, padded), bilinear_taps(valid, original)
    if cells == padded:
        return resize
    if valid == original:
        return Taps(upsample.source[:, :valid], upsample.weight[:, :valid])
    source = upsample.source[:, resize.source]  # [2, 2, out]: tap of the upsampling, tap of the resize
    weight = upsample.weight[:, resize.source] * resize.weight
    return Taps(
        source.transpose(1, 0, 2).reshape(4, original),  # the lowest source first, the highest last
        weight.transpose(1, 0, 2).reshape(4, original),
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
