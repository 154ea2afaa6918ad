"""Encoded images of every kind, made in memory."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def photo(height=61, width=83, seed=0):
    """Smooth colour noise uint8 [height, width, 3], friendly to JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(pixels, extension="png", **options):
    """Encode an array or a Pillow image with Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG"}.get(extension, extension.upper()), **options)
    return buffer.getvalue()


def encode_cv2(pixels, extension="png"):
    """Encode with OpenCV, which also writes 16 bits a channel."""
    return cv2.imencode(f".{extension}", pixels)[1].tobytes()


def oriented(orientation, extension):
    """A file whose EXIF says how to turn it."""
    exif = Image.Exif()
    exif[0x112] = orientation
    return encode(photo(), extension, exif=exif)


def chunk(kind, data):
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header_only(width, height):
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def picture(width, height, seed=0):
    """An encoded image with blobs on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(4):
        y, x, radius = rng.integers(0, height), rng.integers(0, width), rng.integers(8, 30)
        pixels[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = rng.integers(0, 255, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
