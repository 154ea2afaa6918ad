"""Turn encoded bytes into RGB pixels, as mmdetection reads images (`cv2.imread` in colour mode).

Grey is repeated over the three channels, a palette is looked up, alpha is dropped (not blended), 16 bits keep their
high byte, CMYK is converted, and the EXIF orientation is applied.

Pillow reads every header before any pixel is decoded. The pixels come from the fastest decoder that gives the same
pixels (`benchmarks/preprocess.py`): JPEG from simplejpeg, still WebP from OpenCV, the rest from Pillow. Pillow also
gets the files that the other two refuse, and says what is wrong with them. One exception: a JPEG with too few pixels
is refused, because Pillow would fill it up with grey. PNG never goes to OpenCV: its last release for NumPy 1, 4.11,
crashes on damaged animations (as opencv/opencv#27744).

Two parts of a file are hidden from Pillow, because it would unpack every value in them: EXIF (see `exif`), and the
index of a JPEG of several pictures.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from m2f.errors import InputError
from m2f.exif import EXIF, orientation
from m2f.limits import MAX_SIDE
from m2f.record import image_decoded

try:
    from simplejpeg import decode_jpeg
except ImportError:  # no wheel for this machine: Pillow decodes JPEG, too, at half the speed
    decode_jpeg = None

FORMATS = ("JPEG", "PNG", "WEBP")
_STRIP_ROWS = 64
_MAX_READS = 1 << 16  # Pillow reads a chunk of a PNG in 4 reads; libpng's chunks are 8 KiB: 1 << 13 in 64 MiB
_MAX_SCANS = 64  # of a JPEG: encoders make about 10, and each is a pass over all pixels
_MAX_PASSES = 20  # over `max_pixels`: libjpeg makes 10 scans of colour, 18 of CMYK, mozjpeg up to 16
_MAX_TABLES = 1 << 16  # bytes of a JPEG's tables before its first scan: encoders write about 1,000
_MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")  # of a JPEG: markers with a length, and EOI
_EOI, _SOS, _APP0, _APP1 = 0xD9, 0xDA, 0xE0, 0xE1
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # headers of a JPEG that is not progressive
_INDEX = b"MPF\0"  # index of the pictures in a JPEG of several
Pixels = npt.NDArray[np.uint8]


class _File(io.BytesIO):
    """A file in memory that refuses to be read in millions of tiny parts, which would take minutes.

    A part that begins with one of `hidden` is read with another first byte, so that Pillow does not recognise it.
    """

    _reads = 0

    def __init__(self, data: bytes, hidden: tuple[bytes, ...] = ()) -> None:
        super().__init__(data)
        self._hidden = hidden

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MAX_READS:
            raise _too_slow(f"more than {_MAX_READS} parts")
        part = super().read(size)
        return b"\0" + part[1:] if part.startswith(self._hidden) else part


def _too_slow(why: str) -> InputError:
    return InputError(f"the image takes too long to decode: {why}", kind="image_too_large")


def decode_image(data: bytes, *, max_pixels: int, jpeg_decoder: Callable[..., Pixels] | None = decode_jpeg) -> Pixels:
    """Decode one JPEG, PNG or WebP image to RGB uint8 [H, W, 3].

    Peak memory, in bytes a pixel: 3 for a JPEG (6 if EXIF turns it, up to 9 if it is progressive), 6 for a WebP, 7 for
    a PNG.

    Args:
        data: the encoded file.
        max_pixels: largest allowed width x height; checked in the header, before any pixel is decoded.
        jpeg_decoder: simplejpeg's `decode_jpeg`; None: Pillow decodes JPEG.

    Raises:
        InputError: the file is not an image, has another format, is damaged or truncated, too large, or built to take
            long.
    """
    if not data:
        raise InputError("the image is empty (0 bytes); expected a JPEG, PNG or WebP file", kind="image_format")
    with _reported(max_pixels):
        pixels, turned = _decode(data, _open(data, max_pixels), jpeg_decoder)
        turn = _TURNS.get(turned)
        return turn(pixels) if turn else pixels


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read and check the header."""
    if data.startswith(b"\xff\xd8"):
        scans, exif = _survey_jpeg(data)
        image = Image.open(_File(data, (EXIF, _INDEX)), formats=FORMATS)
        image.info["exif"] = exif
    else:
        scans, image = 0, Image.open(_File(data), formats=FORMATS)
    pixels = image.width * image.height
    if pixels > max_pixels or max(image.size) > MAX_SIDE:
        raise InputError(
            f"the image is too large: {image.width} x {image.height}; allowed are {max_pixels} pixels "
            f"and {MAX_SIDE} along a side",
            kind="image_too_large",
        )
    allowed = min(_MAX_SCANS, _MAX_PASSES * max_pixels // pixels)
    if scans > allowed:
        raise _too_slow(f"{scans} scans; allowed are {allowed} of {image.width} x {image.height} pixels")
    return image


def _survey_jpeg(data: bytes) -> tuple[int, bytes]:
    """Return the number of scans, and the EXIF of all segments before the first scan."""
    scans, tables = 0, 0
    components, exif = b"", []
    for marker, content in _segments(data):
        if marker == _SOS:
            scans += 1
            if scans == 1 and content[:1] == components:
                break  # this scan has all components, and libjpeg reads no scan behind it
        elif scans:
            continue
        elif marker == _APP1 and content.startswith(EXIF):
            exif.append(content[len(EXIF) :])
        elif marker < _APP0:
            tables += len(content)
            if tables > _MAX_TABLES:
                raise _too_slow(f"more than {_MAX_TABLES} bytes of tables")
            if marker in _SEQUENTIAL:
                components = content[5:6]
    return scans, b"".join(exif)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of each segment of a JPEG, up to the end of its first picture."""
    at, scanned = 2, False
    for _ in range(_MAX_READS):
        found = _MARKER.search(data, at)
        if not found:
            return
        marker, at = found[1][0], found.end()
        if marker != _EOI:
            end = at + max(2, int.from_bytes(data[at : at + 2], "big"))
            yield marker, data[at + 2 : end]
            at, scanned = end, scanned or marker == _SOS
        elif scanned:  # before a scan, Pillow reads on
            return
    raise _too_slow(f"more than {_MAX_READS} parts")


def _decode(data: bytes, image: Image.Image, jpeg_decoder: Callable[..., Pixels] | None) -> tuple[Pixels, object]:
    """Return the pixels as they are stored, and the orientation; Pillow's own memory is freed on return."""
    pixels = _decode_fast(data, image, jpeg_decoder)
    if pixels is None:
        pixels = _decode_with_pillow(image)
    image_decoded(image.format or "")
    return pixels, orientation(image)  # in a PNG, it may stand behind the pixels


def _decode_fast(data: bytes, image: Image.Image, jpeg_decoder: Callable[..., Pixels] | None) -> Pixels | None:
    """Return the pixels if another decoder is faster than Pillow; None if Pillow must decode."""
    pixels = None
    if image.format == "JPEG" and jpeg_decoder is not None:
        pixels = _decode_jpeg(data, image, jpeg_decoder)
    elif image.format == "WEBP":
        pixels = _decode_webp(data, image)
    return pixels if pixels is not None and pixels.shape == (image.height, image.width, 3) else None


def _decode_jpeg(data: bytes, image: Image.Image, decoder: Callable[..., Pixels]) -> Pixels | None:
    try:  # the buffer has the size that was checked in the header; what is an error here may be a warning to Pillow
        return decoder(data, "RGB", buffer=np.empty((image.height, image.width, 3), np.uint8))
    except ValueError as error:
        if "premature end of data segment" in str(error):  # Pillow would fill up the picture with grey
            raise InputError("the image is damaged: truncated, it has too few pixels", kind="image_damaged") from None
        return None


def _decode_webp(data: bytes, image: Image.Image) -> Pixels | None:
    if getattr(image, "is_animated", False):
        return None
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)  # type: ignore[return-value]
    except cv2.error:
        return None


def _decode_with_pillow(image: Image.Image) -> Pixels:
    """Decode in strips: Pillow holds 4 bytes a pixel, and would take 6 more to hand out the whole image."""
    image.load()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))
        pixels[top : top + _STRIP_ROWS] = np.asarray(_to_rgb(strip))
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        high_byte = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(high_byte)
    if image.mode in ("RGBA", "LA", "RGBX"):
        bands = image.split()
        return Image.merge("RGB", bands[:3] if len(bands) == 4 else bands[:1] * 3)
    return image.convert("RGB")


_TURNS: dict[object, Callable[[Pixels], npt.NDArray]] = {  # by EXIF's orientation; 1 is upright
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


@contextmanager
def _reported(max_pixels: int) -> Iterator[None]:
    """Turn Pillow's errors into an InputError that says what is wrong with the file."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            "not an image this server reads; allowed formats: JPEG, PNG, WebP", kind="image_format"
        ) from None
    except Image.DecompressionBombError:  # Pillow's own limit, about 179 megapixels
        raise InputError(f"the image is too large: allowed are {max_pixels} pixels", kind="image_too_large") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, struct.error) as error:
        # Pillow's decoders raise any of these on damaged files
        raise InputError(f"the image is damaged: {error}", kind="image_damaged") from None
