"""Pictures in TIFF files (BigTIFF, COG and GeoTIFF included), whose windows rasterio reads. The extra is `large`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from m2f.runs import Rect
from m2f_client.client_errors import UnreadableImage
from m2f_client.pictures.geo import Geo
from m2f_client.pictures.picture import MAX_SIDE, Pixels, reduced

_CANNOT = "the TIFF cannot be read"
_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_TYPES = ("uint8", "uint16")
_CACHE = 1 << 22  # bytes of GDAL's cache, besides the rows that a window touches; more makes no tile faster
_MAX_BLOCK = 1 << 30  # bytes of a strip or tile

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # most pictures are no maps


class TiffPicture:
    """A picture in a TIFF file.

    Pixels are those that `m2f.image` reads: 16 bits keep their high byte, a palette is looked up, alpha is dropped.
    Parts that a sparse file leaves out are black.

    Args:
        path: the file.

    Raises:
        UnreadableImage: the file is damaged, has several pictures, numbers that state no white, or bands without
            colours. The message does not name the file.
    """

    def __init__(self, path: str) -> None:
        self._reading = Lock()  # GDAL reads a file in one thread at a time
        self._file = _opened(path)
        try:
            with _reported(_CANNOT), rasterio.Env():  # which keeps warnings off standard error
                self._read_head()
        except BaseException:
            self.close()
            raise

    def _read_head(self) -> None:
        file = self._file
        self.height, self.width = file.height, file.width
        self._bytes = sum(np.dtype(name).itemsize for name in file.dtypes)  # of a pixel
        self._check()
        meanings = _meanings(file)
        self._bands = _colours(meanings)
        self._palette = _palette(file) if meanings[0] == ColorInterp.palette else None
        tags = file.tags(1, ns="IMAGE_STRUCTURE") | file.tags(ns="IMAGE_STRUCTURE")
        self._bits = int(tags.get("NBITS", 8 * np.dtype(file.dtypes[0]).itemsize))
        self._white_is_zero = self._palette is None and tags.get("MINISWHITE") == "YES"
        self.geo = None if _missing(file) else _place(file)

    def window(self, rect: Rect) -> Pixels:
        """Return the pixels of a part of the picture."""
        where = f"the part at x {rect.x1} to {rect.x2}, y {rect.y1} to {rect.y2} is damaged or missing"
        rows = rect.y2 - rect.y1 + 2 * self._file.block_shapes[0][0]
        touched = rows * self.width * self._bytes
        window = Window(rect.x1, rect.y1, rect.x2 - rect.x1, rect.y2 - rect.y1)
        with self._reading, _reported(where), rasterio.Env(GDAL_CACHEMAX=_CACHE + touched):
            bands = self._file.read(self._bands, window=window)  # [bands, h, w]
        return self._pixels(bands)

    def reduced(self, factor: int) -> Pixels:
        """Return the picture, `factor` times smaller."""
        return reduced(self, factor)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> TiffPicture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        """Refuse files of which it is not clear what their picture is, or whose windows take too much memory."""
        if max(self.height, self.width) > MAX_SIDE:
            raise UnreadableImage(f"{self.width} x {self.height} pixels; allowed are {MAX_SIDE} along a side")
        types = set(self._file.dtypes)
        if len(types) > 1 or not types <= set(_TYPES):
            raise UnreadableImage(
                f"the TIFF has values of type {', '.join(sorted(types))}, which state no value for white; allowed are "
                "8 and 16 bits without sign (uint8, uint16)"
            )
        block = math.prod(self._file.block_shapes[0]) * self._bytes
        if block > _MAX_BLOCK:
            raise UnreadableImage(
                f"the TIFF has strips or tiles of {block >> 20} MiB, each of which is read as a whole; allowed are "
                f"{_MAX_BLOCK >> 20} MiB. Write tiles: gdal_translate -co TILED=YES -co BIGTIFF=YES IN.tif OUT.tif"
            )
        for name in self._file.subdatasets[1:]:  # of a whole slide: the levels of the pyramid, a label
            with rasterio.open(name) as other:
                if other.width * other.height >= self.width * self.height:
                    raise UnreadableImage(
                        f"the TIFF has {len(self._file.subdatasets)} pictures; allowed is 1, and smaller ones behind "
                        "it: split the file"
                    )

    def _pixels(self, bands: npt.NDArray[Any]) -> Pixels:
        """Return bands [1 or 3, h, w] as pixels."""
        if self._palette is not None:
            return self._palette[bands[0]]
        scaled = bands >> (self._bits - 8) if self._bits >= 8 else bands * (255 // ((1 << self._bits) - 1))
        pixels = scaled.astype(np.uint8, copy=False)
        if self._white_is_zero:
            pixels = ~pixels
        return np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _opened(path: str) -> rasterio.DatasetReader:
    with _reported(_CANNOT), rasterio.Env():
        return rasterio.open(Path(path).absolute(), driver="GTiff")


def _meanings(file: rasterio.DatasetReader) -> Sequence[ColorInterp]:
    """Return what the bands are."""
    with suppress(CPLE_BaseError):  # rasterio may raise here what GDAL found odd in the file, and read nevertheless
        return file.colorinterp
    return file.colorinterp


def _colours(meanings: Sequence[ColorInterp]) -> list[int]:
    """Return the numbers of the bands that are red, green and blue, or of the one that is grey or a palette."""
    if set(_COLOURS) <= set(meanings):
        return [meanings.index(colour) + 1 for colour in _COLOURS]
    bands = [number for number, meaning in enumerate(meanings, 1) if meaning != ColorInterp.alpha]
    if len(bands) not in (1, 3):
        names = ", ".join(meaning.name for meaning in meanings)
        raise UnreadableImage(
            f"the TIFF has {len(meanings)} bands ({names}); allowed are red, green and blue, or one of grey. Choose "
            "bands: gdal_translate -b 3 -b 2 -b 1 -colorinterp red,green,blue IN.tif OUT.tif"
        )
    return bands


def _palette(file: rasterio.DatasetReader) -> Pixels:
    """Return the palette, uint8 [65536, 3]."""
    palette = np.zeros((1 << 16, 3), np.uint8)
    for index, colour in file.colormap(1).items():
        palette[index] = colour[:3]
    return palette


def read_place(path: str) -> Geo:
    """Return where on earth the picture in a TIFF is.

    Raises:
        UnreadableImage: the file is damaged, or does not say it. The message does not name the file.
    """
    with _opened(path) as file, _reported(_CANNOT), rasterio.Env():
        missing = _missing(file)
        if missing:
            raise UnreadableImage(f"the TIFF does not say where on earth it is: it has {missing}")
        return _place(file)


def _missing(file: rasterio.DatasetReader) -> str | None:
    """Return what a file needs to say where on earth it is; None if it has all."""
    if file.transform.is_identity:
        return "no transform" + (", only control points; gdalwarp makes one of them" if file.gcps[0] else "")
    return None if file.crs else "no coordinate reference system; gdal_edit.py -a_srs EPSG:NUMBER sets it"


def _place(file: rasterio.DatasetReader) -> Geo:
    return Geo(tuple(file.transform)[:6], file.crs.to_string())


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn rasterio's and GDAL's errors into an UnreadableImage."""
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        raise UnreadableImage(f"{what}: {error.__cause__ or error}") from error
