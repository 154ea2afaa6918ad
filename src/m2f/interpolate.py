"""mmdetection's two interpolations at single pixels, rounded as PyTorch rounds them.

The kernels sample by composed taps, whose sums round differently. Two kinds of pixel may therefore fall on the other
side of 0 in PyTorch: one whose logit is within rounding of 0, and one beside an infinite logit, which a weight of 0
turns into NaN where an axis is not resized. These doubtful pixels are computed again here, in the order of
ATen/native/cpu/UpSampleKernel.cpp: its builds for AVX2 and above, which contract a product and a sum to FMA. The masks
are then mmdetection's on such a processor, bit for bit. One exception: for a padded input of height + width <= 128 and
8 queries or more, PyTorch uses yet another order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m2f.geometry import AxisGeometry, Floats, Ints, Taps, bilinear_taps

# Either way to compute a pixel has at most 10 roundings, each 2^-24 of what is summed. The two ways see different signs
# only if the positive and the negative part of the sum are equal but for these roundings, and neither part exceeds the
# largest logit. So the doubt reaches 2 x 10 x 2 x 2^-24 of the largest logit, and a little more if the weights do not
# sum to 1. Roundings of subnormal numbers are below the smallest normal number. Sums of logits beyond 2^126 overflow;
# that case is not handled.
_REACH = np.float32(2**-18)
_SMALLEST = np.finfo(np.float32).tiny

_SMALL = 128  # height + width of an output up to which PyTorch adds the four corners up one by one


class Stages(NamedTuple):
    """Both interpolations along one axis.

    Attributes:
        upsample: cells -> padded network input.
        resize: valid part of the network input -> original image.
    """

    upsample: Taps
    resize: Taps

    @classmethod
    def of(cls, axis: AxisGeometry) -> Stages:
        """Return both interpolations of an axis."""
        return cls(bilinear_taps(axis.cells, axis.padded), bilinear_taps(axis.valid, axis.original))


def rounding(logits: Floats) -> np.float32:
    """Return how close to 0 an interpolated value must be for its sign to be in doubt.

    Args:
        logits: the cells of one mask, of any shape.
    """
    largest = logits.max()
    if not np.isfinite(largest):
        largest = logits[np.isfinite(logits)].max(initial=0)
    return np.float32(max(largest, 0) * _REACH + _SMALLEST)


def doubtful(values: Floats, reach: np.float32) -> npt.NDArray[np.bool_]:
    """Return which values PyTorch may see on the other side of 0.

    Args:
        values: interpolated logits.
        reach: result of `rounding` for the same mask.
    """
    return (np.abs(values) <= reach) | (values == np.inf)


def pixels(logits: Floats, rows: Stages, columns: Stages, y: Ints, x: Ints) -> Floats:
    """Interpolate single pixels of the original image as PyTorch does.

    Args:
        logits: float32 [h, w].
        rows: interpolations along the height.
        columns: interpolations along the width.
        y: int64 [N], rows of the pixels.
        x: int64 [N], columns of the pixels.

    Returns:
        float32 [N].
    """
    between = [
        [_upsampled(logits, rows, columns, rows.resize.source[i][y], columns.resize.source[j][x]) for j in (0, 1)]
        for i in (0, 1)
    ]
    return _bilinear(between, rows.resize, columns.resize, y, x)


def _upsampled(logits: Floats, rows: Stages, columns: Stages, y: Ints, x: Ints) -> Floats:
    corners = [[logits[rows.upsample.source[i][y], columns.upsample.source[j][x]] for j in (0, 1)] for i in (0, 1)]
    return _bilinear(corners, rows.upsample, columns.upsample, y, x)


def _bilinear(corners: list[list[Floats]], rows: Taps, columns: Taps, y: Ints, x: Ints) -> Floats:
    """Average four corners, [below][right], with the weights of outputs (y, x)."""
    (a, b), (c, d) = corners
    above, below = rows.weight[:, y]
    left, right = columns.weight[:, x]
    if rows.weight.shape[1] + columns.weight.shape[1] > _SMALL:
        upper, lower = _multiply_add(a, left, b * right), _multiply_add(c, left, d * right)
        return _multiply_add(upper, above, lower * below)
    value = _multiply_add(a, above * left, b * (above * right))
    return _multiply_add(d, below * right, _multiply_add(c, below * left, value))


def _multiply_add(a: Floats, b: Floats, c: Floats) -> Floats:
    """Return a x b + c, rounded once (FMA): in float64 the product is exact, and the sum in all but 2^-29 of cases."""
    return (a.astype(np.float64) * b + c).astype(np.float32)
