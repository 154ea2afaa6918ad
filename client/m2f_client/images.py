"""The images that `predict` accepts, and the bytes sent for them."""

from __future__ import annotations

import io
import os
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeGuard, Union

import numpy as np
import numpy.typing as npt

from m2f.data_url import decode_data_url, is_data_url
from m2f.errors import InputError
from m2f.limits import MAX_BATCH_SIZE, MAX_SIDE
from m2f_client.client_errors import InvalidRequest, UnreadableImage
from m2f_client.files import MAX_BYTES, read_file

if TYPE_CHECKING:
    import PIL.Image

ImageSource: TypeAlias = Union[
    str, os.PathLike[str], bytes, bytearray, memoryview, IO[bytes], npt.NDArray[np.uint8], "PIL.Image.Image"
]
"""Path or bytes of an image file, or the file open for binary reading; pixels, uint8 [H, W, 3] RGB or [H, W] grey; a
Pillow image."""

_Buffer = bytes | bytearray | memoryview
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

SERVED_SUFFIXES = (".apng", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".webp")
"""Suffixes of the files that the server reads: JPEG, PNG and WebP."""

TRANSCODED_SUFFIXES = (
    ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jp2", ".jpx", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".qoi", ".sgi",
    ".tga", ".tif", ".tiff",
)  # fmt: skip
"""Suffixes of the files that the client sends as PNG."""

IMAGE_SUFFIXES = tuple(sorted(SERVED_SUFFIXES + TRANSCODED_SUFFIXES))
"""Suffixes of all image files that can be sent. A name only says which files of a folder are images; what is in a file
decides how it is read."""

_TRANSCODED = re.compile(  # a group for each format that the client sends as PNG, in Pillow's words
    rb"(?P<TIFF>II\*\0|MM\0\*|II\+\0|MM\0\+)|(?P<BMP>BM)|(?P<GIF>GIF8[79]a)|(?P<PPM>P[1-6][\s#])|(?P<QOI>qoif)"
    rb"|(?P<SGI>\x01\xda)|(?P<PCX>\x0a[\x00\x02\x03\x05]\x01[\x01\x02\x04\x08])"
    rb"|(?P<JPEG2000>\xff\x4f\xff\x51|\0\0\0\x0cjP )|(?P<AVIF>....ftypavi[fs])",
    re.DOTALL,
)
_TGA_END = b"TRUEVISION-XFILE.\0"  # the one signature that a TGA has
_DEEP_MODES = ("I", "F")  # starts of Pillow's modes of more than 8 bits, which define no value for white

_MAX_TRANSCODED = 178_956_970  # pixels of a file that is sent as PNG: Pillow's limit unless it is changed
_END_OF_SIDES = 24  # bytes of signature, head of the first chunk, width and height


def image_tensor(images: Sequence[ImageSource], *, timeout: float | None = None) -> npt.NDArray[np.object_]:
    """Return the `image` input of one request: encoded images as `bytes`, object [N, 1].

    Args:
        images: 1 to 8 images.
        timeout: seconds that reading a pipe may take; None waits for ever.

    Raises:
        InvalidRequest: there are not 1 to 8 images, or an image is not an `ImageSource`.
        UnreadableImage: a file cannot be read.
    """
    if not isinstance(images, Sequence) or isinstance(images, str | _Buffer):
        raise InvalidRequest(f"a batch is a list of images; got {type(images).__name__} (predict takes one image)")
    if not 1 <= len(images) <= MAX_BATCH_SIZE:
        raise InvalidRequest(f"a request takes 1 to {MAX_BATCH_SIZE} images; got {len(images)}")
    tensor = np.empty((len(images), 1), np.object_)
    tensor[:, 0] = [encoded(image, timeout=timeout) for image in images]
    return tensor


def encoded(image: ImageSource, *, timeout: float | None = None) -> bytes:
    """Return an image as the server reads it: its own formats unchanged, other files and pixels as PNG, without loss.

    Of a Pillow image, palettes are looked up and alpha is dropped; an EXIF orientation is not applied.

    Args:
        image: the image.
        timeout: seconds that reading a pipe may take; None waits for ever.

    Raises:
        InvalidRequest: the image has another type, an array another dtype or shape, a Pillow image more than 8 bits.
        UnreadableImage: the file cannot be read or transcoded.
    """
    with named(image):
        content = _content(image, timeout, MAX_BYTES)
        return served(content) if isinstance(content, bytes) else _png(content)


def decoded(
    image: ImageSource, *, max_pixels: int, max_side: int, max_bytes: int, timeout: float | None = None
) -> npt.NDArray[np.uint8]:
    """Return the pixels that the server would read of an image: RGB uint8 [H, W, 3], or [H, W] of a grey array.

    Args:
        image: the image.
        max_pixels: largest width x height.
        max_side: largest width or height.
        max_bytes: largest file in bytes.
        timeout: seconds that reading a pipe may take; None waits for ever.

    Raises:
        InvalidRequest: as `encoded`.
        UnreadableImage: the file cannot be read or decoded, or is too large.
    """
    with named(image):
        content = _content(image, timeout, max_bytes)
        if not isinstance(content, bytes):
            check_pixels(content, max_side=max_side)
            return content
        data = decode_data_url(content, max_bytes=max_bytes) if is_data_url(content) else content
        return _decode(data, max_pixels, max_side)


def readable_again(image: ImageSource, *, timeout: float | None = None) -> ImageSource:
    """Return an image that can be read more than once: the content of an open file or a pipe, other images unchanged.

    Args:
        image: the image.
        timeout: seconds that reading a pipe may take; None waits for ever.

    Raises:
        UnreadableImage: the open file or the pipe cannot be read.
    """
    path = path_of(image)
    if path is not None and _is_pipe(path):
        with named(image):
            return read_file(path, timeout=timeout)
    is_open = hasattr(image, "read") and not isinstance(image, os.PathLike) and not _is_pillow(image)
    return _read_open(image, MAX_BYTES) if is_open else image


def _is_pipe(path: str) -> bool:
    try:
        return Path(path).is_fifo()
    except OSError:  # the name is too long
        return False


@contextmanager
def named(image: ImageSource) -> Iterator[None]:
    """Turn an error about a file into an `UnreadableImage` whose message begins with the file's path, if it has one."""
    try:
        yield
    except (InputError, UnreadableImage) as error:
        path = path_of(image)
        raise UnreadableImage(str(error) if path is None else f"{path}: {error}") from error


def path_of(image: ImageSource) -> str | None:
    """Return the path of an image that is given by its path; None for another image, and for a data URL."""
    name = os.fsdecode(image) if isinstance(image, str | os.PathLike) else "data:"
    return None if name[:5].lower() == "data:" else name


def _content(image: ImageSource, timeout: float | None, max_bytes: int) -> bytes | npt.NDArray[Any]:
    """Return the file that an image is, or its pixels."""
    if isinstance(image, np.ndarray) and image.ndim == 0:
        image = _scalar(image)
    if isinstance(image, _Buffer):
        return bytes(memoryview(image))  # exactly `bytes`: tritonclient sends the repr of a subclass
    if isinstance(image, str | os.PathLike):
        return _read(image, timeout, max_bytes)
    if isinstance(image, np.ndarray):
        return image
    if _is_pillow(image):
        return _pillow_pixels(image)
    if hasattr(image, "read"):
        return _read_open(image, max_bytes)
    raise InvalidRequest(
        f"an image is a path, bytes, a uint8 array, a Pillow image or an open file; got {type(image).__name__}"
        + (" (for a list of images: predict_batch)" if isinstance(image, list | tuple) else "")
    )


def served(data: bytes) -> bytes:
    """Return a file as the server reads it: TIFF, BMP and other formats of `TRANSCODED_SUFFIXES` as PNG, upright.

    A data URL is the file in it.

    The pixels are those that the server would read of a PNG: 16 bits keep their high byte, alpha is dropped, and of an
    animation the first picture counts. Files of any other format are returned unchanged; the server judges them.

    Raises:
        UnreadableImage: the data URL or the file is damaged, larger than 179 million pixels, a TIFF of several
            pictures or of values that state no white, or this Pillow does not read its format.
    """
    try:
        file = decode_data_url(data, max_bytes=MAX_BYTES) if is_data_url(data) else data
        return file if _transcoded_format(file) is None else _png(_decode(file, _MAX_TRANSCODED, MAX_SIDE))
    except InputError as error:
        raise UnreadableImage(str(error)) from error


def _transcoded_format(data: bytes) -> str | None:
    """Return the name of a format that only the client reads; None for other files."""
    found = _TRANSCODED.match(data)
    return found.lastgroup if found else "TGA" if data.endswith(_TGA_END) else None


def _decode(data: bytes, max_pixels: int, max_side: int) -> npt.NDArray[np.uint8]:
    from m2f.image import FORMATS, decode_image  # noqa: PLC0415 (imports Pillow and OpenCV)

    name = _transcoded_format(data)
    return decode_image(
        data, max_pixels=max_pixels, max_side=max_side, formats=FORMATS if name is None else (name,)
    )  # fmt: skip


def pixels_of_png(data: bytes) -> int | None:
    """Return the number of pixels that a PNG states; None for other files."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < _END_OF_SIDES:
        return None
    width, height = struct.unpack_from(">II", data, _END_OF_SIDES - 8)
    return int(width * height)


def _scalar(array: npt.NDArray[Any]) -> Any:
    """Return what an array without dimensions holds, such as bytes or a path; the array itself if that is a number."""
    if array.dtype.kind == "S":
        return array.tobytes()  # `item` would drop zeros at the end
    return array.item() if array.dtype.kind in "UO" else array


def _read(path: str | os.PathLike[str], timeout: float | None, max_bytes: int) -> bytes:
    name = path_of(path)
    if name is None:
        return os.fsdecode(path).encode(errors="replace")  # a data URL
    if _ADDRESS.match(name):
        raise UnreadableImage("this is an address, not a path; download the image and pass its bytes")
    return read_file(name, timeout=timeout, max_bytes=max_bytes)


def _read_open(file: Any, max_bytes: int) -> bytes:
    """Return what is left of a file that is open for binary reading."""
    try:
        data = None if isinstance(file, io.TextIOBase) else file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise UnreadableImage(f"the open file cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise InvalidRequest(f"an open file must give bytes: open it with 'rb'; got {type(file).__name__}")
    if not data:
        raise UnreadableImage("the open file is at its end: seek(0)")
    if len(data) > max_bytes:
        raise UnreadableImage(f"the open file is larger than {max_bytes >> 20} MiB")
    return data


def check_pixels(pixels: npt.NDArray[Any], *, max_side: int = MAX_SIDE) -> None:
    """Check an array of pixels.

    Raises:
        InvalidRequest: the array is not uint8 [H, W, 3] or [H, W], or a side is 0 or more than `max_side`.
    """
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not (colour or pixels.ndim == 2):
        given = f"{pixels.dtype} {list(pixels.shape)}"
        raise InvalidRequest(f"pixels are uint8 [H, W, 3] (RGB) or [H, W] (grey); got {given}")
    if not all(1 <= side <= max_side for side in pixels.shape[:2]):
        raise InvalidRequest(f"the sides of an image are 1 to {max_side}; got {list(pixels.shape)}")


def _png(pixels: npt.NDArray[Any]) -> bytes:
    check_pixels(pixels)
    import cv2  # noqa: PLC0415 (slow, and only needed to send pixels)

    # OpenCV's defaults (filter "sub", run lengths) are twice as fast as zlib level 1 in OpenCV or Pillow
    _, png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels)
    return png.tobytes()


def _is_pillow(image: object) -> TypeGuard[PIL.Image.Image]:
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
