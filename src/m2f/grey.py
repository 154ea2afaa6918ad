"""Colour to grey, as `cv2.imread` does in grey mode: the decoder of each format weights the channels in its own way.

JPEG is not converted: its luma is the grey. WebP goes through OpenCV's `cvtColor`, PNG through libpng's
`png_set_rgb_to_gray(0.299, 0.587)`, which cuts fractions off. If the PNG states a gamma, libpng averages light instead
of levels.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
_WEIGHTS = 9797, 19_234, 3737  # of 32768: libpng's 0.299 and 0.587, cut off, and the rest
_SRGB_GAMMA = 0.45455
_LINEAR = 0.05  # libpng takes an exponent that is nearer to 1 for 1


def to_grey(rgb: Pixels, image: Image.Image) -> Pixels:
    """Return grey levels uint8 [H, W].

    Args:
        rgb: uint8 [H, W, 3].
        image: the file that the pixels come from.
    """
    if image.format != "PNG":
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]
    gamma = _SRGB_GAMMA if "srgb" in image.info else image.info.get("gamma", 1.0)
    if _is_linear(gamma):
        return _weighted(rgb, np.arange(256), rounding=0).astype(np.uint8)
    light, back = _powers(1 / gamma), _powers(gamma)
    grey = back[_weighted(rgb, light, rounding=1 << 14)].astype(np.uint8)
    red, green, blue = cv2.split(rgb)
    return np.where((red == green) & (red == blue), red, grey)  # type: ignore[return-value]


def _is_linear(exponent: float) -> bool:
    return abs(exponent - 1) <= _LINEAR


def _powers(exponent: float) -> npt.NDArray[np.int64]:
    levels = np.arange(256)
    return levels if _is_linear(exponent) else np.floor(255 * (levels / 255) ** exponent + 0.5).astype(np.int64)


def _weighted(rgb: Pixels, levels: npt.NDArray[np.int64], *, rounding: int) -> npt.NDArray[np.int32]:
    total = np.full(rgb.shape[:2], rounding, np.int32)
    for channel, weight in enumerate(_WEIGHTS):
        total += (levels * weight).astype(np.int32)[rgb[:, :, channel]]
    return total >> 15
