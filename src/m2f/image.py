"""Turn encoded bytes into RGB pixels, as mmdetection reads images (`cv2.imread` in colour mode).

Grey is repeated over the three channels, a palette is looked up, alpha is dropped (not blended), 16 bits keep their
high byte, CMYK is converted, and the EXIF orientation is applied.

Pillow reads every header before any pixel is decoded. The pixels come from the fastest decoder that gives the same
pixels (`benchmarks/preprocess.py`): JPEG from simplejpeg, still WebP from OpenCV, the rest from Pillow. Pillow also
gets the files that the other two refuse, and says what is wrong with them. One exception: a JPEG with too few pixels
is refused, because Pillow would fill it up with grey. PNG never goes to OpenCV: its last release for NumPy 1, 4.11,
crashes on damaged animations (as opencv/opencv#27744).

Three parts of a JPEG are hidden from Pillow, because it would unpack every value in them: EXIF (see `exif`), the index
of several pictures, and Photoshop's settings. `survey` refuses files that are built to take long.

The server reads `FORMATS`. The client reads more formats with the same code, and sends their pixels as PNG.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from m2f.errors import InputError
from m2f.exif import EXIF, orientation
from m2f.grey import to_grey
from m2f.limits import MAX_SIDE
from m2f.record import image_decoded
from m2f.slow import MAX_PARTS, too_many_parts, too_slow
from m2f.survey import survey
from m2f.tiff import check_tiff

try:
    from simplejpeg import decode_jpeg
except ImportError:  # no wheel for this machine: Pillow decodes JPEG, too, at half the speed
    decode_jpeg = None

FORMATS = ("JPEG", "PNG", "WEBP")
_BASE64 = (b"/9j/", b"iVBORw0KGgo", b"UklGR")  # beginnings of JPEG, PNG and WebP in base64
_STRIP_ROWS, _STRIP_PIXELS = 64, 1 << 22  # at most, unless a row has more; Pillow has a limit for what is cut out, too
_MAX_SCANS = 64  # of a JPEG: encoders make about 10, and each is a pass over all pixels
_MAX_PASSES = 20  # over `max_pixels`: libjpeg makes 10 scans of colour, 18 of CMYK, mozjpeg up to 16
_MAX_COPIES = 8  # Pillow reads the pixels of a sound file once, the tags of a TIFF up to 4 times
_NAMES = {"WEBP": "WebP", "JPEG2000": "JPEG 2000"}
_UNBOUNDED_MODES = ("I", "F")
_PILLOWS_ERRORS = (  # what its decoders raise on damaged files
    ArithmeticError, AttributeError, EOFError, IndexError, OSError, RuntimeError, SyntaxError, TypeError, ValueError,
    struct.error,
)  # fmt: skip
_PILLOWS_LIMIT = Lock()
_HIDDEN = (EXIF, b"MPF\0", b"Photoshop 3.0\0")
Pixels = npt.NDArray[np.uint8]


class _File(io.BytesIO):
    """A file in memory that refuses to be read in millions of tiny parts, or again and again: it would take minutes.

    A part that begins with one of `hidden` is read with another first byte, so that Pillow does not recognise it.
    """

    _parts, _bytes = 0, 0

    def __init__(self, data: bytes, hidden: tuple[bytes, ...] = ()) -> None:
        super().__init__(data)
        self._hidden, self._allowed = hidden, _MAX_COPIES * len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(size)
        self._parts, self._bytes = self._parts + 1, self._bytes + len(part)
        if self._parts > MAX_PARTS:
            raise too_many_parts()
        if self._bytes > self._allowed:
            raise too_slow(f"its parts lie on top of each other, more than {_MAX_COPIES} deep")
        return b"\0" + part[1:] if part.startswith(self._hidden) else part


def decode_image(
    data: bytes,
    *,
    max_pixels: int,
    max_side: int = MAX_SIDE,
    formats: tuple[str, ...] = FORMATS,
    jpeg_decoder: Callable[..., Pixels] | None = decode_jpeg,
    exif_orientation: bool = True,
    grey: bool = False,
) -> Pixels:
    """Decode one image to RGB uint8 [H, W, 3], or to grey uint8 [H, W].

    Peak memory, in bytes a pixel: 3 for a JPEG (6 if EXIF turns it, up to 9 if it is progressive, 12 of CMYK), 6 for a
    WebP, 7 for a PNG.

    Args:
        data: the encoded file.
        max_pixels: largest allowed width x height; checked in the header, before any pixel is decoded. Pillow's own
            limit, `MAX_IMAGE_PIXELS`, does not count.
        max_side: largest allowed width or height.
        formats: the formats that are read, in Pillow's words.
        jpeg_decoder: simplejpeg's `decode_jpeg`; None: Pillow decodes JPEG.
        exif_orientation: whether to turn the image as its EXIF says.
        grey: whether to return one channel, as `cv2.imread` does in grey mode.

    Raises:
        InputError: the file is not an image, has another format, is damaged or truncated, too large, or built to take
            long.
    """
    if not data:
        raise InputError("the image is empty (0 bytes); expected a JPEG, PNG or WebP file", kind="image_format")
    with _reported(data, formats):
        pixels, turned = _decode(data, _open(data, max_pixels, max_side, formats), jpeg_decoder, grey)
        turn = _TURNS.get(turned) if exif_orientation else None
        return turn(pixels) if turn else pixels


def _open(data: bytes, max_pixels: int, max_side: int, formats: tuple[str, ...]) -> Image.Image:
    """Read and check the header."""
    if formats == ("TIFF",):
        check_tiff(data)
    found = survey(data)
    file = _File(data, () if found.exif is None else _HIDDEN)
    with _without_pillows_limit():
        image = Image.open(file, formats=formats)
    if found.exif is not None:
        assert isinstance(image, ImageFile)
        image.decodermaxblock = len(data)  # by default Pillow hands over 64 KiB, then these again and 64 KiB more, ...
        image.info["exif"] = found.exif
    pixels = image.width * image.height
    if pixels > max_pixels or max(image.size) > max_side:
        raise InputError(
            f"the image is too large: {image.width} x {image.height}; allowed are {max_pixels} pixels "
            f"and {max_side} along a side",
            kind="image_too_large",
        )
    allowed = min(_MAX_SCANS, _MAX_PASSES * max_pixels // pixels)
    if found.scans > allowed:
        raise too_slow(f"{found.scans} scans; allowed are {allowed} of {image.width} x {image.height} pixels")
    if image.mode in _UNBOUNDED_MODES and image.format == "TIFF":
        raise InputError(
            f"the TIFF has values of 32 bits or with a sign (Pillow's mode {image.mode!r}), which state no value for "
            "white; allowed are 8 and 16 bits",
            kind="image_format",
        )
    return image


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Let Pillow open an image of any size. Its limit is one for the process, and lower than `max_pixels` may be."""
    with _PILLOWS_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _decode(
    data: bytes, image: Image.Image, jpeg_decoder: Callable[..., Pixels] | None, grey: bool
) -> tuple[Pixels, object]:
    """Return the pixels as they are stored, and the orientation; Pillow's own memory is freed on return."""
    pixels = _decode_fast(data, image, jpeg_decoder, grey)
    if pixels is None:
        pixels = _decode_with_pillow(image, grey)
    image_decoded(image.format or "")
    return pixels, orientation(image)  # in a PNG, it may stand behind the pixels


def _decode_fast(
    data: bytes, image: Image.Image, jpeg_decoder: Callable[..., Pixels] | None, grey: bool
) -> Pixels | None:
    """Return the pixels if another decoder is faster than Pillow; None if Pillow must decode."""
    pixels = None
    if image.format == "JPEG" and jpeg_decoder is not None:
        pixels = _decode_jpeg(data, image, jpeg_decoder, grey)
    elif image.format == "WEBP":
        pixels = _decode_webp(data, image, grey)
    shape = (image.height, image.width) if grey else (image.height, image.width, 3)
    return pixels if pixels is not None and pixels.shape == shape else None


def _decode_jpeg(data: bytes, image: Image.Image, decoder: Callable[..., Pixels], grey: bool) -> Pixels | None:
    space, channels = ("Gray", 1) if grey else ("RGB", 3)
    try:  # the buffer has the size that was checked in the header; what is an error here may be a warning to Pillow
        pixels = decoder(data, space, buffer=np.empty((image.height, image.width, channels), np.uint8))
    except ValueError as error:
        if "premature end of data segment" in str(error):  # Pillow would fill up the picture with grey
            raise InputError("the image is damaged: truncated, it has too few pixels", kind="image_damaged") from None
        return None
    return pixels[:, :, 0] if grey else pixels


def _decode_webp(data: bytes, image: Image.Image, grey: bool) -> Pixels | None:
    if getattr(image, "is_animated", False):
        return None
    try:
        flags = (cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB) | cv2.IMREAD_IGNORE_ORIENTATION
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)  # type: ignore[return-value]
    except cv2.error:
        return None


def _decode_with_pillow(image: Image.Image, grey: bool) -> Pixels:
    """Decode in strips: Pillow holds 4 bytes a pixel, and would take 6 more to hand out the whole image."""
    if grey and image.format == "JPEG":
        image.draft("L", image.size)  # libjpeg hands out the luma
    image.load()
    pixels = np.empty((image.height, image.width) if grey else (image.height, image.width, 3), np.uint8)
    rows = max(1, min(_STRIP_ROWS, _STRIP_PIXELS // image.width))
    for top in range(0, image.height, rows):
        strip = np.asarray(_to_rgb(image.crop((0, top, image.width, min(top + rows, image.height)))))
        pixels[top : top + rows] = to_grey(strip, image) if grey else strip
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
def _reported(data: bytes, formats: tuple[str, ...]) -> Iterator[None]:
    """Turn Pillow's errors into an InputError that says what is wrong with the file."""
    try:
        yield
    except InputError:
        raise
    except (UnidentifiedImageError, KeyError):  # KeyError: this Pillow does not have the format
        names = ", ".join(_NAMES.get(name, name) for name in formats)
        told = f"not an image this server reads; allowed formats: {names}"
        if data.startswith(_BASE64):
            told += ". It is base64: put 'data:image/jpeg;base64,' before it"
        if formats is not FORMATS:  # the file has the beginning of one of them
            told = f"the image is damaged, or a kind of {names} that this Pillow does not read"
        raise InputError(told, kind="image_format") from None
    except Image.DecompressionBombError as error:  # of a GIF, whose frames Pillow checks
        raise InputError(f"the image is too large: {error}", kind="image_too_large") from None
    except _PILLOWS_ERRORS as error:
        raise InputError(f"the image is damaged: {error}", kind="image_damaged") from None
