"""Look through the tags of a TIFF before Pillow does: it copies each value, and values may lie on top of each other."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import mmap

from m2f.errors import InputError
from m2f.slow import MAX_PARTS, too_many_parts, too_slow

_MAX_NUMBERS = 1 << 20  # in all tags: a picture of 65,535 rows has at most as many strips
_NUMBERS = {3: "H", 4: "I", 5: "Q", 8: "h", 9: "i", 10: "q", 11: "f", 12: "d", 13: "I", 16: "Q", 18: "Q"}  # by type
BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first four bytes of a TIFF; the last two are of a BigTIFF."""

ORIENTATION = 274
"""Tag that says how a picture is turned; 1 is upright."""

_PAGE_KIND, _FOLDERS = 254, (34665, 34853, 40965)  # tags; the second lead to more tags: EXIF, GPS, Interop
_NO_PAGE = 0b101  # bits of _PAGE_KIND: a smaller copy of the picture, or its mask


def check_tiff(data: bytes) -> None:
    """Check that a TIFF holds one picture, besides smaller copies and masks, and how much its tags unpack to.

    Raises:
        InputError: the file has several pictures, or is built to take long.
        struct.error: the file is cut off.
    """
    tiff = _Tiff(data)
    pages, parts, numbers = 0, 0, 0
    waiting, seen = [(tiff.first, True)], set()  # lists of tags: position, and whether the list is a picture's
    while waiting:
        at, is_page = waiting.pop()
        if at in seen or not at:
            continue
        seen.add(at)
        smaller = False
        for tag, kind, count, value in tiff.tags(at):
            parts, numbers = parts + 1, numbers + (count if kind in _NUMBERS else 0)
            if numbers > _MAX_NUMBERS:
                raise too_slow(f"more than {_MAX_NUMBERS} numbers in its tags")
            if parts > MAX_PARTS:
                raise too_many_parts()
            smaller = smaller or (tag == _PAGE_KIND and bool(value & _NO_PAGE))
            if tag in _FOLDERS:
                waiting.append((value, False))
        parts += 1
        if is_page:
            pages += not smaller
            waiting.append((tiff.behind(at), True))
    if pages > 1:
        raise InputError(f"the TIFF has {pages} pictures; allowed is 1: split the file", kind="image_format")


def number_of(data: bytes | mmap, tag: int, default: int) -> int:
    """Return the whole number that a tag of the first picture has.

    Raises:
        struct.error: the file is cut off.
    """
    tiff = _Tiff(data)
    return next((value for found, _, count, value in tiff.tags(tiff.first) if found == tag and count == 1), default)


class _Tiff:
    """The lists of tags in a file."""

    def __init__(self, data: bytes | mmap) -> None:
        self._data = data
        self._order, large = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
        self._head, self._tag, self._position = ("Q", "HHQ", "Q") if large else ("H", "HHI", "I")
        self._size = 20 if large else 12  # of a tag, with its value or the value's position
        self.first = self._number(self._position, 8 if large else 4)

    def tags(self, at: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield tag, type, number of values, and the value if it is one whole number."""
        begin = at + struct.calcsize(self._head)
        for entry in range(begin, self._end(at), self._size):
            tag, kind, count = struct.unpack_from(self._order + self._tag, self._data, entry)
            value_at = entry + struct.calcsize(self._order + self._tag)
            whole = count == 1 and _NUMBERS.get(kind, "") in ("H", "I", self._position)
            yield tag, kind, count, self._number(_NUMBERS[kind], value_at) if whole else 0

    def behind(self, at: int) -> int:
        """Return the position of the next list; 0 if there is none, or none within the file."""
        end = self._end(at)
        follows = self._number(self._position, end) if end + self._size <= len(self._data) else 0
        return follows if follows < len(self._data) else 0

    def _end(self, at: int) -> int:
        return at + struct.calcsize(self._head) + self._number(self._head, at) * self._size

    def _number(self, form: str, at: int) -> int:
        return int(struct.unpack_from(self._order + form, self._data, at)[0])
