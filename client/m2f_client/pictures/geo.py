"""Where on earth a picture's pixels are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geo:
    """The place of a picture on earth.

    Attributes:
        transform: a b c d e f. The corner (x, y) of the pixels, x to the right and y down, lies at (a x + b y + c,
            d x + e y + f) in the coordinates of `crs`.
        crs: the coordinate reference system, in a form that PROJ reads, such as `EPSG:32633` or WKT.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str
