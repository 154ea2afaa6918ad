"""Encoded bytes -> RGB pixels, as mmdetection reads images (`cv2.imread` in colour mode).

Grey is repeated over the three channels, a palette is looked up, alpha is dropped (not blended), 16 bits keep
their high byte, CMYK is converted, and the EXIF orientation is applied.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from m2f.contract import MAX_SIDE, InputError

FORMATS = ("JPEG", "PNG", "WEBP")

Pixels = npt.NDArray[np.uint8]


def decode_image(data: bytes, *, max_pixels: int) -> Pixels:
    """Decode one JPEG, PNG or WebP image to RGB uint8 [H, W, 3].

    Args:
        data: the encoded file.
        max_pixels: larger images are refused by their header, before any pixel is decoded.

    Raises:
        InputError: not an image, another format, damaged or truncated, too large.
    """
    if not data:
        raise InputError("the image is empty (0 bytes); expected a JPEG, PNG or WebP file")
    with _reported(max_pixels):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels or max(image.size) > MAX_SIDE:
            raise InputError(
                f"the image is too large: {image.width} x {image.height}; allowed are {max_pixels} pixels "
                f"and {MAX_SIDE} along a side"
            )
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        high_byte = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(high_byte)
    if image.mode in ("RGBA", "LA", "RGBX"):
        bands = image.split()
        return Image.merge("RGB", bands[:3] if len(bands) == 4 else bands[:1] * 3)
    return image.convert("RGB")


@contextmanager
def _reported(max_pixels: int) -> Iterator[None]:
    """Turn Pillow's errors into one that says what is wrong with the file."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError("not an image this server reads; allowed formats: JPEG, PNG, WebP") from None
    except Image.DecompressionBombError:  # Pillow's own limit, some 179 megapixels
        raise InputError(f"the image is too large: allowed are {max_pixels} pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError) as error:
        # Pillow's decoders raise any of these on damaged files
        raise InputError(f"the image is damaged: {error}") from None
