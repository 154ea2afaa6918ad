"""Files that are not the plain pictures a server hopes for, by name: which are images all the same, and which not."""

import functools
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pictures import chunk, encode, encode_cv2, oriented, photo, png_header_only
from PIL import Image, PngImagePlugin

from m2f.limits import MAX_IMAGE_BYTES

NOT_AN_IMAGE = "allowed formats: JPEG, PNG, WebP"
DAMAGED = "the image is damaged|" + NOT_AN_IMAGE
LARGE = "the image is too large"
SLOW = "takes too long to decode"

PHOTO = Image.fromarray(photo())
RGBA = PHOTO.convert("RGBA")
RGBA.putalpha(77)
JPEG, PROGRESSIVE = encode(PHOTO, "jpg"), encode(PHOTO, "jpg", progressive=True)
CMYK = encode(Image.fromarray(np.full((61, 83, 4), 99, np.uint8), "CMYK"), "jpg")
PNG, PALETTE, INTERLACED = encode(PHOTO), encode(PHOTO.convert("P")), encode_cv2(photo())
WEBP, WEBP_ALPHA = encode(PHOTO, "webp"), encode(RGBA, "webp", lossless=True)


@dataclass(frozen=True)
class File:
    """What a client may send as an image.

    Attributes:
        content: the file, or what makes it: together the large ones have 340 MB, and every worker imports this module.
        reason: regular expression of the error; None: it is an image.
    """

    content: bytes | Callable[[], bytes]
    reason: str | None = None

    @property
    def data(self):
        return self.content() if callable(self.content) else self.content


@functools.cache
def _many_zeros():
    packer = zlib.compressobj(1)
    return b"".join([*(packer.compress(bytes(1 << 24)) for _ in range(16)), packer.flush()])


def _animated(extension):
    buffer = io.BytesIO()
    PHOTO.save(buffer, extension, save_all=True, append_images=[Image.fromarray(photo(seed=9))])
    return buffer.getvalue()


def _zipped(name="a.txt", content=b"hello"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _png_with(*chunks, behind=b"IHDR", of=PNG):
    """A PNG with more chunks behind a chunk."""
    at = of.index(behind) - 4
    at += 12 + struct.unpack(">I", of[at : at + 4])[0]
    return of[:at] + b"".join(chunks) + of[at:]


def _png_of(width, height, depth, colour, *chunks, rows=None):
    """A PNG made by hand; `rows`: the filtered bytes of its pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = [] if rows is None else [chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, *data, chunk(b"IEND", b"")])


def _jpeg_sized(height, width, data=JPEG, header=b"\xff\xc0"):
    """A JPEG whose header claims another size."""
    at = data.index(header) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _segment(marker, content):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def _jpeg_with(*segments, of=JPEG):
    return of[:2] + b"".join(segments) + of[2:]


def _exif(*entries, byte_order=b"MM", first=8):
    """Make EXIF of tags (tag, type, count, four bytes)."""
    order = {b"MM": ">", b"II": "<"}.get(byte_order, ">")
    ifd = struct.pack(order + "H", len(entries)) + b"".join(
        struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries
    )
    return b"Exif\0\0" + byte_order + struct.pack(order + "HI", 42, first) + ifd + bytes(4)


def _orientation(value):
    return _exif((0x112, 3, 1, struct.pack(">HH", value, 0)))


def _shared(entries, size, kind=1):
    """EXIF of values that are all the same bytes; kind 5 are fractions, of 8 bytes each."""
    number = size // {1: 1, 5: 8}[kind]
    return _exif(*[(tag, kind, number, b"\0\0\0\x08") for tag in range(entries)]) + bytes(size)


def _exif_segments(exif, size=65_000):
    """EXIF in as many segments as it takes."""
    return [_segment(0xE1, b"Exif\0\0" + exif[at : at + size]) for at in range(6, len(exif), size)]


def grey_scans(count, side=16):
    """A JPEG that is not progressive, of a scan for each component, again and again."""
    whole = encode(Image.new("RGB", (16, 16), (128, 128, 128)), "jpg", subsampling=0)
    tables = _jpeg_sized(side, side, whole[: whole.index(b"\xff\xda")])
    brightness = _segment(0xDA, b"\1\1\0\0\x3f\0") + b"\x28\xa2\x8a"  # a block is 00 1010: as before, no more
    colours = [_segment(0xDA, bytes([1, colour, 0x11, 0, 0x3F, 0])) + bytes(2) for colour in (2, 3)]  # 00 00
    scans = [brightness, *colours] * (count // 3 + 1)
    return tables + b"".join(scans[:count]) + b"\xff\xd9"


def fill_bytes_in_a_scan(count, of=JPEG):
    """A JPEG whose first scan is all fill bytes: 0xff, which may stand any number of times before a marker."""
    scan = of.index(b"\xff\xda") + 2
    return of[: scan + int.from_bytes(of[scan : scan + 2], "big")] + b"\xff" * count


def packed_megabytes(kind, count, checksum=b""):
    """A PNG of many texts or profiles, each of a kilobyte that unpacks to a megabyte; `checksum`: a wrong one."""
    beginning = {b"iCCP": b"icc\0\0", b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0"}[kind]
    packed = zlib.compress(bytes(1 << 20))
    return _png_with(chunk(kind, beginning + packed[: len(packed) - len(checksum)] + checksum) * count)


def _vp8x_chunk(width, height, flags=0):
    """The extended header of a WebP; flag 2: it is animated."""
    canvas = bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X" + struct.pack("<I", len(canvas)) + canvas


def _riff(*chunks):
    """A WebP of these chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _vp8x(width, height):
    """A WebP whose extended header claims a canvas."""
    return _riff(_vp8x_chunk(width, height, flags=2))


def _text_chunk_of_256_megabytes():
    return _png_with(chunk(b"zTXt", b"Comment\0\0" + _many_zeros()))


def _international_text_of_256_megabytes():
    return _png_with(chunk(b"iTXt", b"Comment\0\1\0\0\0" + _many_zeros()))


def _profile_of_256_megabytes():
    return _png_with(chunk(b"iCCP", b"icc\0\0" + _many_zeros()))


def _pixels_of_256_megabytes():
    header = struct.pack(">IIBBBBB", 83, 61, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", _many_zeros()), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


_INFO = PngImagePlugin.PngInfo()
_INFO.add_text("Comment", "<html><script>alert(1)</script></html>")

NOT_IMAGES = {
    "empty": File(b"", "the image is empty"),
    "one byte": File(b"\x89", NOT_AN_IMAGE),
    "text": File(b"not a picture at all", NOT_AN_IMAGE),
    "a megabyte of zeros": File(bytes(1 << 20), NOT_AN_IMAGE),
    "noise": File(np.random.default_rng(0).bytes(5000), NOT_AN_IMAGE),
    "html": File(b"<!doctype html><html><img src=x></html>", NOT_AN_IMAGE),
    "svg": File(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', NOT_AN_IMAGE),
    "json": File(b'{"image": "aGVsbG8="}', NOT_AN_IMAGE),
    "base64 of a jpeg": File(b"/9j/4AAQSkZJRgABAQAAAQABAAD", NOT_AN_IMAGE),
    "data address": File(b"data:image/png;base64,iVBORw0KGgo=", NOT_AN_IMAGE),
    "data address of a data address": File(b"data:image/png;base64,ZGF0YTppbWFnZS9wbmc7YmFzZTY0LA==", NOT_AN_IMAGE),
    "data address of text": File(b"data:text/html;base64,PGh0bWw+", "has the media type 'text/html'"),
    "data address without base64": File(b"data:image/svg+xml,%3Csvg/%3E", "has no ';base64'"),
    "data address without an end": File(b"data:" + b"image/png;" * 100_000, "has no comma"),
    "data address of white space": File(lambda: b"data:image/png;base64," + b"\n" * 10_000_000, "the image is empty"),
    "data address of a file that is too large": File(
        lambda: b"data:image/png;base64," + b"A" * (MAX_IMAGE_BYTES // 3 * 4 + 8),
        f"{LARGE}: 6710886. bytes in its data URL",
    ),
    "pdf": File(b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF", NOT_AN_IMAGE),
    "postscript": File(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NOT_AN_IMAGE),
    "elf": File(b"\x7fELF" + bytes(100), NOT_AN_IMAGE),
    "pickle": File(b"\x80\x04cos\nsystem\n(S'true'\ntR.", NOT_AN_IMAGE),
    "numpy file": File(b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}", NOT_AN_IMAGE),
    "zip": File(_zipped(), NOT_AN_IMAGE),
    "zip bomb": File(lambda: _zipped("zeros", bytes(1 << 24)), NOT_AN_IMAGE),
    "gzip of a png": File(gzip.compress(PNG), NOT_AN_IMAGE),
    "gzip bomb": File(lambda: gzip.compress(bytes(1 << 24)), NOT_AN_IMAGE),
    "gif": File(encode(PHOTO, "gif"), NOT_AN_IMAGE),
    "gif header": File(b"GIF89a\xff\xff\xff\xff\xf7\0\0", NOT_AN_IMAGE),
    "gif header before a jpeg": File(b"GIF89a" + JPEG, NOT_AN_IMAGE),
    "bmp": File(encode(PHOTO, "bmp"), NOT_AN_IMAGE),
    "tiff": File(encode(PHOTO, "tiff"), NOT_AN_IMAGE),
    "ppm": File(encode(PHOTO, "ppm"), NOT_AN_IMAGE),
    "ico": File(encode(PHOTO.resize((16, 16)), "ico"), NOT_AN_IMAGE),
    "jpeg 2000": File(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), NOT_AN_IMAGE),
    "heic header": File(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", NOT_AN_IMAGE),
    "avif header": File(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", NOT_AN_IMAGE),
    "more bytes than allowed": File(
        lambda: JPEG + bytes(MAX_IMAGE_BYTES - len(JPEG) + 1), f"{LARGE}: 67108865 bytes encoded"
    ),
}

JPEGS = {
    "jpeg cmyk": File(CMYK),
    "jpeg ycck": File(CMYK[: CMYK.index(b"\xff\xee") + 15] + b"\2" + CMYK[CMYK.index(b"\xff\xee") + 16 :]),
    "jpeg grey": File(encode(PHOTO.convert("L"), "jpg")),
    "jpeg progressive": File(PROGRESSIVE),
    "jpeg of two pictures": File(_animated("mpo")),
    "jpeg with a zip behind it": File(JPEG + _zipped()),
    "jpeg with html in a comment": File(_jpeg_with(_segment(0xFE, b"<html><script>alert(1)</script>"))),
    "jpeg with restart markers": File(encode(PHOTO, "jpg", restart_marker_blocks=1)),
    "jpeg of one pixel": File(encode(photo(1, 1), "jpg")),
    "jpeg with fill bytes": File(_jpeg_with(b"\xff" * 999)),
    "jpeg orientation 0": File(_jpeg_with(_segment(0xE1, _orientation(0)))),
    "jpeg orientation 9": File(_jpeg_with(_segment(0xE1, _orientation(9)))),
    "jpeg orientation 65535": File(_jpeg_with(_segment(0xE1, _orientation(65535)))),
    "jpeg orientation as text": File(_jpeg_with(_segment(0xE1, _exif((0x112, 2, 4, b"six\0"))))),
    "jpeg exif that points nowhere": File(_jpeg_with(_segment(0xE1, _exif((0x10F, 2, 1 << 31, b"\xff" * 4))))),
    "jpeg exif that points at itself": File(_jpeg_with(_segment(0xE1, _exif((0x8769, 4, 1, b"\0\0\0\x08"))))),
    "jpeg exif of no byte order": File(_jpeg_with(_segment(0xE1, _exif(byte_order=b"XX")))),
    "jpeg exif cut off": File(_jpeg_with(_segment(0xE1, _orientation(6)[:17]))),
    "jpeg exif of a megabyte": File(_jpeg_with(*[_segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 16)),
    "jpeg exif whose values share 40 kB": File(_jpeg_with(*_exif_segments(_shared(600, 40_000)))),
    "jpeg exif whose values share a megabyte": File(lambda: _jpeg_with(*_exif_segments(_shared(2000, 1_000_000)))),
    "jpeg exif in 16,000 segments": File(lambda: _jpeg_with(*[_segment(0xE1, b"Exif\0\0" + bytes(2000))] * 16_000)),
    "jpeg index whose values share 30 kB": File(
        _jpeg_with(_segment(0xE2, b"MPF\0" + _shared(2700, 32_000, kind=5)[6:65_000]))
    ),
    "jpeg settings of Photoshop, a million of them": File(
        lambda: _jpeg_with(*[_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5400)] * 190)
    ),
    "jpeg profile of no sense": File(_jpeg_with(_segment(0xE2, b"ICC_PROFILE\0\1\2nonsense"))),
    "jpeg index of pictures that lies": File(_jpeg_with(_segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff" + bytes(40)))),
    "jpeg start alone": File(b"\xff\xd8", DAMAGED),
    "jpeg start and end": File(b"\xff\xd8\xff\xd9", DAMAGED),
    "jpeg cut in its header": File(JPEG[:100], DAMAGED),
    "jpeg cut before its pixels": File(JPEG[: JPEG.index(b"\xff\xda")], DAMAGED),
    "jpeg cut in its pixels": File(JPEG[: JPEG.index(b"\xff\xda") + 60], DAMAGED),
    "jpeg cut by 200 bytes": File(JPEG[:-200], DAMAGED),
    "jpeg progressive cut": File(PROGRESSIVE[: len(PROGRESSIVE) // 2], DAMAGED),
    "jpeg of 65535 x 65535": File(_jpeg_sized(65_535, 65_535), LARGE),
    "jpeg of 10000 x 10000": File(_jpeg_sized(10_000, 10_000), f"{LARGE}: 10000 x 10000; allowed are 67108864 pixels"),
    "jpeg of no rows": File(_jpeg_sized(0, 83), DAMAGED),
    "jpeg of no columns": File(_jpeg_sized(61, 0), DAMAGED),
    "jpeg taller than its pixels": File(_jpeg_sized(6100, 83), DAMAGED),
    "jpeg lossless": File(JPEG.replace(b"\xff\xc0", b"\xff\xc3", 1), DAMAGED),
    "jpeg of 12 bits": File(JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c", 1), DAMAGED),
    "jpeg of a component too many": File(JPEG.replace(b"\xff\xc0\0\x11", b"\xff\xc0\0\x10", 1), DAMAGED),
    "jpeg without its tables": File(JPEG.replace(b"\xff\xdb", b"\xff\xef"), DAMAGED),
    "jpeg of very many segments": File(lambda: _jpeg_with(b"\xff\xe5\0\2" * 300_000), SLOW),
    "jpeg of very many scans": File(
        lambda: PROGRESSIVE[:-2] + PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2] * 5000 + b"\xff\xd9", SLOW
    ),
    "jpeg of very many scans of a component": File(
        lambda: grey_scans(3000, 8192), f"{SLOW}: 3000 scans; allowed are 20"
    ),
    "jpeg of 64 scans of 8192 x 8192": File(
        lambda: (
            _jpeg_sized(8192, 8192, PROGRESSIVE[:-2], b"\xff\xc2")
            + PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2] * 54
            + b"\xff\xd9"
        ),
        f"{SLOW}: 64 scans; allowed are 20 of 8192 x 8192 pixels",
    ),
    "jpeg of 16 MB of fill bytes in a scan": File(lambda: fill_bytes_in_a_scan(16 << 20), DAMAGED),
    "jpeg progressive of 16 MB of fill bytes in a scan": File(
        lambda: fill_bytes_in_a_scan(16 << 20, of=PROGRESSIVE), DAMAGED
    ),
    "jpeg of 10 MB of tables": File(lambda: _jpeg_with(_segment(0xDB, bytes(65 * 1000)) * 160), SLOW),
    "jpeg of millions of components": File(
        lambda: _jpeg_with(_segment(0xC0, b"\x08\0\x08\0\x08\3" + bytes(65_499)) * 160), SLOW
    ),
}

PNGS = {
    "png 16-bit grey": File(encode_cv2(np.full((9, 9), 40_000, np.uint16))),
    "png 16-bit rgb": File(encode_cv2(np.full((9, 9, 3), 40_000, np.uint16))),
    "png 16-bit rgba": File(encode_cv2(np.full((9, 9, 4), 40_000, np.uint16))),
    "png grey": File(encode(PHOTO.convert("L"))),
    "png black and white": File(encode(PHOTO.convert("1"))),
    "png palette": File(PALETTE),
    "png palette with transparency": File(encode(PHOTO.convert("P"), transparency=3)),
    "png palette beyond its end": File(_png_of(2, 2, 8, 3, chunk(b"PLTE", b"\1\2\3"), rows=b"\0\xff\xff\0\xff\xff")),
    "png alpha": File(encode(RGBA)),
    "png grey alpha": File(encode(RGBA.convert("LA"))),
    "png animated": File(_animated("png")),
    "png orientation 6": File(oriented(6, "png")),
    "png with html in it": File(encode(PHOTO, pnginfo=_INFO) + b"<html></html>"),
    "png with a zip behind it": File(PNG + _zipped()),
    "png with many chunks": File(_png_with(chunk(b"prVt", b"x") * 5000)),
    "png of one pixel": File(encode(photo(1, 1))),
    "png of one row of 65535": File(encode(photo(1, 65_535))),
    "png whose pixels unpack to 256 MB": File(_pixels_of_256_megabytes),
    "png text of 256 MB": File(_text_chunk_of_256_megabytes, DAMAGED),
    "png international text of 256 MB": File(_international_text_of_256_megabytes, DAMAGED),
    "png profile of 256 MB": File(_profile_of_256_megabytes, DAMAGED),
    "png of 64 profiles of a megabyte": File(lambda: packed_megabytes(b"iCCP", 64)),
    "png of 65 profiles of a megabyte": File(lambda: packed_megabytes(b"iCCP", 65), SLOW),
    "png of 65 texts of a megabyte": File(lambda: packed_megabytes(b"zTXt", 65), SLOW),
    "png of 65 texts of a megabyte, each with a wrong checksum": File(
        lambda: packed_megabytes(b"zTXt", 65, b"1234"), SLOW
    ),
    "png of 65 international texts, each with a wrong checksum": File(
        lambda: packed_megabytes(b"iTXt", 65, b"1234"), SLOW
    ),
    "png of two million chromaticities": File(lambda: _png_with(chunk(b"cHRM", bytes(8_000_000))), DAMAGED),
    "png exif whose values share a megabyte": File(lambda: _png_with(chunk(b"eXIf", _shared(2000, 1_000_000)[6:]))),
    "png exif as text whose values share 500 kB": File(
        lambda: _png_with(
            chunk(
                b"zTXt",
                b"Raw profile type exif\0\0"
                + zlib.compress(b"\nexif\n 500000\n" + _shared(4000, 470_000).hex().encode(), 9),
            )
        )
    ),
    "png exif as 50 MB of empty lines": File(
        lambda: _png_with(chunk(b"tEXt", b"Raw profile type exif\0" + b"\n" * 50_000_000))
    ),
    "png exif of many beginnings": File(lambda: _png_with(chunk(b"eXIf", b"Exif\0\0" * 300_000))),
    "png exif of two million fractions": File(
        lambda: _png_with(chunk(b"eXIf", _exif((0x112, 5, 2_000_000, b"\0\0\0\x08"))[6:] + bytes(16_000_000)))
    ),
    "png exif of no byte order": File(_png_with(chunk(b"eXIf", _exif(byte_order=b"XX")[6:]))),
    "png exif of a large TIFF": File(_png_with(chunk(b"eXIf", b"II+\0\x08\0\0\0" + bytes(40)))),
    "png with a short chunk behind its pixels": File(_png_with(chunk(b"gAMA", b"\0"), behind=b"IDAT"), DAMAGED),
    "png signature alone": File(PNG[:8], DAMAGED),
    "png cut in its header": File(PNG[:20], DAMAGED),
    "png cut in its pixels": File(PNG[: len(PNG) // 2], DAMAGED),
    "png without pixels": File(png_header_only(100, 100), DAMAGED),
    "png of 65535 x 65535": File(png_header_only(65_535, 65_535), LARGE),
    "png of a thousand million pixels": File(png_header_only(31_623, 31_623), LARGE),
    "png of 2147483647 columns": File(png_header_only(2**31 - 1, 1), LARGE),
    "png of 65536 columns": File(png_header_only(65_536, 1), f"{LARGE}: 65536 x 1; .* and 65535 along a side"),
    "png of no columns": File(png_header_only(0, 5), DAMAGED),
    "png of negative size": File(png_header_only(2**32 - 1, 2**32 - 1), LARGE + "|" + DAMAGED),
    "png of no such colour": File(_png_of(2, 2, 8, 5, rows=bytes(6)), DAMAGED),
    "png of no such depth": File(_png_of(2, 2, 3, 0, rows=bytes(6)), DAMAGED),
    "png with a wrong checksum": File(PNG[:29] + b"\0\0\0\0" + PNG[33:], DAMAGED),
    "png with a chunk that claims 4 GB": File(_png_with(b"\xff\xff\xff\xfftEXt" + bytes(9)), DAMAGED),
    "png whose pixels claim 4 GB": File(PNG[:33] + b"\xff\xff\xff\xff" + PNG[37:]),
    "png with pixels that do not unpack": File(
        PNG[: PNG.index(b"IDAT") + 4] + b"\xff" * 60 + PNG[PNG.index(b"IDAT") + 64 :], DAMAGED
    ),
    "png of very many chunks": File(lambda: _png_with(chunk(b"prVt", b"") * 200_000), SLOW),
}

WEBPS = {
    "webp lossless alpha": File(WEBP_ALPHA),
    "webp animated": File(_animated("webp")),
    "webp of one pixel": File(encode(photo(1, 1), "webp")),
    "webp with a zip behind it": File(WEBP + _zipped()),
    "webp orientation 6": File(oriented(6, "webp")),
    "webp exif whose values share a megabyte": File(lambda: encode(PHOTO, "webp", exif=_shared(2000, 1_000_000))),
    "webp of 30,000 chunks": File(_riff(_vp8x_chunk(83, 61), WEBP[12:], b"abcd\0\0\0\0" * 30_000)),
    "webp of very many chunks": File(lambda: _riff(_vp8x_chunk(83, 61), WEBP[12:], b"abcd\0\0\0\0" * 300_000), SLOW),
    "webp header alone": File(b"RIFF\x1a\0\0\0WEBP", DAMAGED),
    "webp cut in its pixels": File(WEBP[: len(WEBP) // 2], DAMAGED),
    "webp lossless cut": File(WEBP_ALPHA[: len(WEBP_ALPHA) // 2], DAMAGED),
    "webp animated cut": File(_animated("webp")[:200], DAMAGED),
    "webp canvas of 16777216 x 255": File(_vp8x(1 << 24, 255), LARGE + "|" + DAMAGED),
    "webp canvas of 16384 x 16384": File(_vp8x(1 << 14, 1 << 14), LARGE + "|" + DAMAGED),
    "webp of no sense": File(WEBP[:20] + b"\xff" * (len(WEBP) - 20), DAMAGED),
    "riff that is sound": File(b"RIFF\x24\0\0\0WAVEfmt " + bytes(28), NOT_AN_IMAGE),
}

FILES = {**NOT_IMAGES, **JPEGS, **PNGS, **WEBPS}
