"""Open any image as a picture that is read in parts."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from m2f.tiff import BEGINNINGS, ORIENTATION, number_of
from m2f_client.client_errors import UnreadableImage
from m2f_client.images import ImageSource, decoded, named, path_of
from m2f_client.pictures.geo import Geo
from m2f_client.pictures.picture import MAX_SIDE, Picture, PictureInMemory

MAX_DECODED_PIXELS = 1 << 30
"""Most pixels of a picture that is decoded into memory, such as a JPEG: 3 GiB."""

_MAX_BYTES = 1 << 32  # of a file that is decoded into memory
_LARGE = "windows of a TIFF of any size are read with rasterio: pip install 'm2f[large]'"


def open_picture(image: ImageSource, *, timeout: float | None = None) -> Picture:
    """Open an image as a picture.

    Of a TIFF that is given by its path, windows are read if the extra `large` is installed. Any other image is decoded
    once; its pixels are those that the server would read.

    Args:
        image: as for `Client.predict`.
        timeout: seconds that reading a pipe may take; None waits for ever.

    Raises:
        InvalidRequest: the image has another type, or an array another dtype or shape.
        UnreadableImage: the file cannot be read; the message begins with its path, if it was given by path.
    """
    path = path_of(image)
    in_windows = path is not None and _is_upright_tiff(path)
    if in_windows and (picture := _in_windows(str(path))) is not None:
        return picture
    try:
        pixels = decoded(
            image, max_pixels=MAX_DECODED_PIXELS, max_side=MAX_SIDE, max_bytes=_MAX_BYTES, timeout=timeout
        )  # fmt: skip
    except UnreadableImage as error:
        if in_windows or getattr(error.__cause__, "kind", None) == "image_too_large":
            raise UnreadableImage(f"{error}; {_LARGE}") from error
        raise
    return PictureInMemory(pixels)


def read_geo(path: str | os.PathLike[str]) -> Geo:
    """Return where on earth the picture in a GeoTIFF is.

    Raises:
        UnreadableImage: the file is not an upright TIFF, or does not say where it is, or rasterio is not installed; the
            message begins with its path.
    """
    with named(path):
        if not _is_upright_tiff(os.fsdecode(path)):
            raise UnreadableImage("not a GeoTIFF, which alone says where on earth it is")
        try:
            from m2f_client.pictures.tiff import read_place  # noqa: PLC0415 (an extra)
        except ModuleNotFoundError as error:
            raise UnreadableImage("a GeoTIFF is read with rasterio: pip install 'm2f[large]'") from error
        return read_place(os.fsdecode(path))


def _in_windows(path: str) -> Picture | None:
    """Open a TIFF; None if rasterio is not installed."""
    try:
        from m2f_client.pictures.tiff import TiffPicture  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError:
        return None
    with named(path):
        return TiffPicture(path)


def _is_upright_tiff(path: str) -> bool:
    """Say whether a file is a TIFF, whatever its name, that is stored upright: `m2f.image` turns the others."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            if file.read(4) not in BEGINNINGS:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return number_of(data, ORIENTATION, 1) == 1
    except (OSError, ValueError):  # there is no such file
        return False
    except struct.error:  # the file is cut off
        return True
