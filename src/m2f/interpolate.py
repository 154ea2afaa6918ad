"""mmdetection's two interpolations at single pixels, rounded as PyTorch rounds them.

`masks` samples by composed taps, whose sums round otherwise: a pixel closer to 0 than rounding reaches may be on the
other side of it in PyTorch, and what is not resized along an axis makes NaN of an infinite logit there, by a weight of
0. Such pixels are computed once more here, in the order of ATen/native/cpu/UpSampleKernel.cpp: its builds for AVX2 and
above, which contract a product and a sum to FMA. So masks are those of mmdetection on such a processor, bit for bit.
Except: for a padded input of height + width <= 128 and 8 queries or more PyTorch has yet another order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m2f.geometry import Floats, Ints, Taps, bilinear_taps

# Either way to a pixel has at most 10 roundings, each 2^-24 of the sizes of what is summed. Two ways see two signs only
# where its positive and its negative part are equal but for these; neither part exceeds the largest logit. That makes
# 2 x 10 x 2 x 2^-24 of it, and a little more where weights do not sum to 1. Roundings of subnormal numbers come to less
# than the smallest normal one; that the sums of logits beyond 2^126 overflow is not thought of.
_REACH = np.float32(2**-18)
_SMALLEST = np.finfo(np.float32).tiny

_SMALL = 128  # height + width of an output up to which PyTorch adds the four corners up one by one


class Stages(NamedTuple):
    """One axis of both interpolations.

    Attributes:
        upsample: cells -> padded network input.
        resize: its valid part -> original image.
    """

    upsample: Taps
    resize: Taps

    @classmethod
    def of(cls, *, cells: int, padded: int, valid: int, original: int) -> Stages:
        """The arguments are those of `geometry.mask_taps`."""
        return cls(bilinear_taps(cells, padded), bilinear_taps(valid, original))


def rounding(logits: Floats) -> np.float32:
    """Return how close to 0 the sign of a value is in doubt that was interpolated from these logits of a mask."""
    largest = logits.max()
    if not np.isfinite(largest):
        largest = logits[np.isfinite(logits)].max(initial=0)
    return np.float32(max(largest, 0) * _REACH + _SMALLEST)


def doubtful(values: Floats, reach: np.float32) -> npt.NDArray[np.bool_]:
    """Return which values PyTorch may see on the other side of 0; `reach` is that of `rounding`."""
    return (np.abs(values) <= reach) | (values == np.inf)


def pixels(logits: Floats, rows: Stages, columns: Stages, y: Ints, x: Ints) -> Floats:
    """Interpolate single pixels of the original image, as PyTorch does.

    Args:
        logits: float32 [h, w].
        rows: of the height.
        columns: of the width.
        y: int64 [N].
        x: int64 [N].

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
    """Mean of four corners, [below][right], with the weights of outputs (y, x)."""
    (a, b), (c, d) = corners
    above, below = rows.weight[:, y]
    left, right = columns.weight[:, x]
    if rows.weight.shape[1] + columns.weight.shape[1] > _SMALL:
        upper, lower = _multiply_add(a, left, b * right), _multiply_add(c, left, d * right)
        return _multiply_add(upper, above, lower * below)
    value = _multiply_add(a, above * left, b * (above * right))
    return _multiply_add(d, below * right, _multiply_add(c, below * left, value))


def _multiply_add(a: Floats, b: Floats, c: Floats) -> Floats:
    """FMA, the sum of c and a x b rounded once: in float64 the product is exact, and the sum but for one in 2^29."""
    return (a.astype(np.float64) * b + c).astype(np.float32)
