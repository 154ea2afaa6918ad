"""Look through an encoded file before a decoder does, and refuse what is built to take long.

A decoder may do much more than the size of a file suggests: it unpacks texts and profiles, passes over all pixels for
each scan, and copies values that lie on top of each other. The limits here bound that work. They follow from the bytes
and hold before any pixel is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from m2f.errors import InputError
from m2f.exif import EXIF
from m2f.slow import MAX_PARTS, too_many_parts, too_slow

_MAX_TABLES = 1 << 16  # bytes of a JPEG's tables before its first scan: encoders write about 1,000
_MAX_UNPACKED = 1 << 26  # bytes that the texts and profiles of a PNG may unpack to, all together

_MARKER = re.compile(rb"\xff[\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe]")  # of a JPEG: markers with a length, and EOI
_EOI, _SOS, _APP0, _APP1 = 0xD9, 0xDA, 0xE0, 0xE1
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # headers of a JPEG that is not progressive

_PACKED = (b"iCCP", b"zTXt", b"iTXt")
_PILLOWS_TEXT_LIMIT = 1 << 20  # bytes that Pillow unpacks of one text or profile
_DEFLATE = 1032  # deflate makes at most so many bytes of one
_CHROMATICITIES = 32  # bytes of a cHRM chunk: eight numbers


@dataclass(frozen=True)
class Survey:
    """What a file says before it is decoded.

    Attributes:
        scans: number of scans of a JPEG, as far as libjpeg reads them; 0 for another file.
        exif: EXIF of all segments of a JPEG before its first scan; None for another file.
    """

    scans: int = 0
    exif: bytes | None = None


def survey(data: bytes) -> Survey:
    """Survey a JPEG, PNG or WebP; another file passes unread.

    Raises:
        InputError: the file is built to take long.
    """
    if data.startswith(b"\xff\xd8"):
        return _survey_jpeg(data)
    if data.startswith(b"\x89PNG"):
        _check_png(data)
    elif data.startswith(b"RIFF"):
        _check_webp(data)
    return Survey()


def _survey_jpeg(data: bytes) -> Survey:
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
                raise too_slow(f"more than {_MAX_TABLES} bytes of tables")
            if marker in _SEQUENTIAL:
                components = content[5:6]
    return Survey(scans, b"".join(exif))


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of each segment of a JPEG, up to the end of its first picture."""
    at, scanned = 2, False
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, at)
        if not found:
            return
        at = found.end()
        marker = data[at - 1]
        if marker != _EOI:
            end = at + max(2, int.from_bytes(data[at : at + 2], "big"))
            yield marker, data[at + 2 : end]
            at, scanned = end, scanned or marker == _SOS
        elif scanned:  # before a scan, Pillow reads on
            return
    raise too_many_parts()


def _check_png(data: bytes) -> None:
    """Check what Pillow would unpack: compressed texts and profiles, and the numbers of a cHRM chunk."""
    at, unpacked = 8, 0
    for _ in range(MAX_PARTS):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IEND" or not kind.isalpha():
            return
        if kind == b"cHRM" and size > _CHROMATICITIES:
            raise InputError(f"the image is damaged: a cHRM chunk of {size} bytes", kind="image_damaged")
        if kind in _PACKED:
            unpacked += min(_PILLOWS_TEXT_LIMIT, _DEFLATE * size)
            if unpacked > _MAX_UNPACKED:
                raise too_slow(f"its texts and profiles may unpack to more than {_MAX_UNPACKED} bytes")
        at += size + 12
    raise too_many_parts()


def _check_webp(data: bytes) -> None:
    """Count the chunks: libwebp keeps a record of each."""
    at = 12
    for _ in range(MAX_PARTS):
        if at >= len(data):
            return
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    raise too_many_parts()
