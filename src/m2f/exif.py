"""Read the orientation of an image: the one value of its EXIF that matters.

Pillow would unpack every value of EXIF. Thousands of values may be the same bytes, so that a file of 30 kB takes a
minute and 2.6 GB.
"""

from __future__ import annotations

import struct

from PIL import ExifTags, Image

EXIF = b"Exif\0\0"
_FORMATS = {  # EXIF's types in the letters of struct; types that are not numbers are bytes
    **{1: "s", 2: "s", 3: "H", 4: "I", 5: "8s", 6: "b", 7: "s"},
    **{8: "h", 9: "i", 10: "8s", 11: "f", 12: "d", 13: "I", 16: "Q"},
}


def orientation(image: Image.Image) -> object:
    """Return the orientation from EXIF, or else from XMP, which Pillow reads if there is no EXIF."""
    text = image.info.pop("Raw profile type exif", "")  # EXIF in hexadecimal after three lines
    exif = image.info.pop("exif", None)
    if exif is None:
        exif = bytes.fromhex("".join(text.split("\n", 3)[3:]).replace("\n", ""))
    found = exif_orientation(exif)
    return image.getexif().get(ExifTags.Base.Orientation) if found is None else found


def exif_orientation(exif: bytes) -> object:
    """Return the orientation as Pillow finds it, without a copy of the other values; None if there is none."""
    begin = 0
    while exif.startswith(EXIF, begin):  # some programs write the header twice
        begin += len(EXIF)
    tiff = exif[begin:]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or sorted(tiff[2:4]) != [0, 42] or len(tiff) < 8:
        return None
    (at,) = struct.unpack_from(order + "I", tiff, 4)
    count = int.from_bytes(tiff[at : at + 2], "little" if order == "<" else "big")
    found = None
    for entry in range(at + 2, min(at + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, number, value_at = struct.unpack_from(order + "HHII", tiff, entry)
        form = order + _FORMATS.get(kind, "")
        size = struct.calcsize(form) * number
        if size <= 4:
            value_at = entry + 8
        elif value_at + size > len(tiff):
            break  # damaged: the entries behind it do not count
        if tag == ExifTags.Base.Orientation and size:
            (found,) = struct.unpack_from(form, tiff, value_at)
    return found
