"""TIFF files written piece by piece."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from .mosaic import Pixels

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # these pictures are no maps


def write_tiff(
    path: Path, height: int, width: int, pieces: Iterable[tuple[int, int, Pixels]], *, block: int, **layout: str | int
) -> None:
    """Write a BigTIFF in blocks; no more than a piece of it is in memory.

    Args:
        path: the file.
        height: of the picture.
        width: of the picture.
        pieces: column and row of the upper left pixel, and pixels, uint8 [h, w, 3] RGB.
        block: side of a block, a multiple of 16.
        layout: other options of GDAL's driver, such as `compress="deflate"`.
    """
    blocks = {"tiled": True, "blockxsize": block, "blockysize": block, "interleave": "pixel", "bigtiff": "YES"}
    size = {"height": height, "width": width, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **size, **blocks, **layout) as file:
        for x, y, pixels in pieces:
            window = Window(x, y, pixels.shape[1], pixels.shape[0])
            file.write(np.ascontiguousarray(pixels.transpose(2, 0, 1)), window=window)
