"""TIFF files that a reader must survive, made by hand."""

import io
import struct

from pictures import photo
from PIL import Image

PHOTO = Image.fromarray(photo())
PIXELS = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}  # 8 x 8 grey, pixels from byte 8


def tiff(*lists, pixels=bytes(64), tail=b"", last=0):
    """A TIFF of lists of tags (tag, type, count, value); the lists begin behind the pixels and follow each other.

    Args:
        tail: bytes behind the lists.
        last: position of the list behind the last one.
    """
    parts, at = [b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels], 8 + len(pixels)
    for index, tags in enumerate(lists):
        at += 6 + 12 * len(tags)
        follows = at if index + 1 < len(lists) else last
        parts += [
            struct.pack("<H", len(tags)),
            *(struct.pack("<HHII", *tag) for tag in tags),
            struct.pack("<I", follows),
        ]
    return b"".join(parts) + tail


def picture_tags(*more, **changed):
    """The tags of a small grey picture, and more."""
    values = PIXELS | {int(tag): value for tag, value in changed.items()}
    return sorted([(tag, 4, 1, value) for tag, value in values.items()] + list(more))


def pages(*kinds, **options):
    """A TIFF of several pictures, written by Pillow; `kinds`: the NewSubfileType of each, None for no such tag."""
    buffer = io.BytesIO()
    first, *rest = [PHOTO.resize((83 >> i, 61 >> i)) for i in range(len(kinds))]
    for image, kind in zip((first, *rest), kinds, strict=True):
        image.encoderinfo = {"tiffinfo": {} if kind is None else {254: kind}}
    first.save(buffer, "TIFF", save_all=True, append_images=rest, **first.encoderinfo, **options)
    return buffer.getvalue()
