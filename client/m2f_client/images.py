"""The images that `predict` accepts, and the bytes sent for them."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from m2f.limits import MAX_BATCH_SIZE, MAX_SIDE
from m2f_client.client_errors import InvalidRequest, UnreadableImage

if TYPE_CHECKING:
    import PIL.Image

ImageSource: TypeAlias = Union[str, os.PathLike[str], bytes, npt.NDArray[np.uint8], "PIL.Image.Image"]
"""Path or bytes of a JPEG, PNG or WebP; pixels, uint8 [H, W, 3] RGB or [H, W] grey; a Pillow image."""

_DEEP_MODES = ("I", "F")  # starts of Pillow's modes of more than 8 bits, which define no value for white

_END_OF_SIDES = 24  # bytes of signature, head of the first chunk, width and height


def image_tensor(images: Sequence[ImageSource]) -> npt.NDArray[np.object_]:
    """Return the `image` input of one request: encoded images as `bytes`, object [N, 1].

    Raises:
        InvalidRequest: there are not 1 to 8 images, or an image is not an `ImageSource`.
        UnreadableImage: a file cannot be read.
    """
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise InvalidRequest(f"a batch is a list of images; got {type(images).__name__} (predict takes one image)")
    if not 1 <= len(images) <= MAX_BATCH_SIZE:
        raise InvalidRequest(f"a request takes 1 to {MAX_BATCH_SIZE} images; got {len(images)}")
    tensor = np.empty((len(images), 1), np.object_)
    tensor[:, 0] = [encoded(image) for image in images]
    return tensor


def encoded(image: ImageSource) -> bytes:
    """Return the bytes of an image file: files unchanged, pixels as PNG, without loss.

    Of a Pillow image, palettes are looked up and alpha is dropped; an EXIF orientation is not applied.

    Raises:
        InvalidRequest: the image has another type, an array another dtype or shape, a Pillow image more than 8 bits.
        UnreadableImage: the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return _read(image)
    if isinstance(image, np.ndarray):
        return _png(image)
    if _is_pillow(image):
        return _png(_pillow_pixels(image))
    raise InvalidRequest(
        f"an image is a path, bytes, a uint8 array or a Pillow image; got {type(image).__name__}"
        + (" (for a list of images: predict_batch)" if isinstance(image, list | tuple) else "")
    )


def pixels_of_png(data: bytes) -> int | None:
    """Return the number of pixels that a PNG states; None for other files."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < _END_OF_SIDES:
        return None
    width, height = struct.unpack_from(">II", data, _END_OF_SIDES - 8)
    return int(width * height)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{os.fspath(path)}: {error.strerror}") from error
    except ValueError as error:  # a null character
        raise UnreadableImage(f"{os.fspath(path)!r}: {error}") from error


def _png(pixels: npt.NDArray[Any]) -> bytes:
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not (colour or pixels.ndim == 2):
        given = f"{pixels.dtype} {list(pixels.shape)}"
        raise InvalidRequest(f"pixels are uint8 [H, W, 3] (RGB) or [H, W] (grey); got {given}")
    if not all(1 <= side <= MAX_SIDE for side in pixels.shape[:2]):
        raise InvalidRequest(f"the sides of an image are 1 to {MAX_SIDE}; got {list(pixels.shape)}")
    import cv2  # noqa: PLC0415 (slow, and only needed to send pixels)

    # OpenCV's defaults (filter "sub", run lengths) are twice as fast as zlib level 1 in OpenCV or Pillow
    _, png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if colour else pixels)
    return png.tobytes()


def _is_pillow(image: object) -> bool:
    module = sys.modules.get("PIL.Image")  # a Pillow image exists only if Pillow is imported
    return module is not None and isinstance(image, module.Image)


def _pillow_pixels(image: PIL.Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith(_DEEP_MODES):
        raise InvalidRequest(f"a Pillow image of mode {image.mode!r} has more than 8 bits; convert it to 'L' or 'RGB'")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    try:
        return np.asarray(image if image.mode == mode else image.convert(mode))
    except (OSError, ValueError) as error:  # Pillow may read the file only here
        raise UnreadableImage(f"Pillow cannot read the image: {error}") from error
