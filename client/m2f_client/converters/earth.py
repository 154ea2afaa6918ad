"""Polygons of pixels as polygons on earth: longitude and latitude on WGS 84, as RFC 7946 has them, and their areas.

rasterio (with PROJ) transforms the corners, and shapely cuts polygons at the antimeridian: the extra `large`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform

from m2f.errors import M2FError
from m2f_client.converters.polygons import Points, Polygon
from m2f_client.pictures.geo import Geo

Degrees = npt.NDArray[np.float64]
"""float64 [N, 2], longitude and latitude; the first point is not repeated."""

_STEP = 64  # pixels; a longer edge gets points in between, because it is not straight in degrees
_SHOWN = 120  # characters of a coordinate reference system in a message
_AXIS = 6_378_137.0  # semi-major axis of WGS 84 in metres
_ECCENTRICITY = 0.081819190842621  # of WGS 84


@dataclass(frozen=True)
class Place:
    """The polygons of a mask on earth.

    Attributes:
        polygons: for each polygon its rings: first the exterior, counterclockwise, then the holes, clockwise. A polygon
            across the antimeridian is cut there.
        box: west, south, east, north; west is more than east if the antimeridian is between them.
        area: square metres.
    """

    polygons: Sequence[Sequence[Degrees]]
    box: tuple[float, float, float, float]
    area: float


def place(polygons: Sequence[Polygon], geo: Geo) -> Place:
    """Return where the polygons of a mask, at least one, are on earth.

    The area is that of Lambert's cylindrical equal-area projection of the ellipsoid.

    Raises:
        M2FError: PROJ cannot transform a corner, or a polygon has a pole inside.
    """
    on_earth = [[_degrees(ring, geo) for ring in (polygon.exterior, *polygon.holes)] for polygon in polygons]
    on_earth = [_oriented(rings) for rings in on_earth]
    first = on_earth[0][0][0, 0]  # the box is the smallest around all polygons, also if they are at the antimeridian
    on_earth = [[_turned(ring, round((first - rings[0][0, 0]) / 360)) for ring in rings] for rings in on_earth]
    longitudes = np.concatenate([rings[0][:, 0] for rings in on_earth])
    latitudes = np.concatenate([rings[0][:, 1] for rings in on_earth])
    west, east = longitudes.min(), longitudes.max()
    if east - west >= 360:
        west, east = -180.0, 180.0
    return Place(
        [piece for rings in on_earth for piece in _cut(rings)],
        (_wrapped(west), float(latitudes.min()), _wrapped(east), float(latitudes.max())),
        sum(_area(ring) for rings in on_earth for ring in rings),
    )


def _degrees(ring: Points, geo: Geo) -> Degrees:
    """Return a ring on earth; its longitudes have no jump, and so may be beyond 180."""
    points = _with_steps(ring)
    a, b, c, d, e, f = geo.transform
    x, y = points.T
    found = np.array(_transform(geo.crs, a * x + b * y + c, d * x + e * y + f)).T
    if not np.isfinite(found).all():
        raise M2FError(f"no place on earth for {_short(geo.crs)}: a corner is outside of its area")
    longitudes = np.unwrap(found[:, 0], period=360)
    if abs(longitudes[-1] - longitudes[0]) > 180:
        raise M2FError("an instance has a pole inside, and so no polygon in longitude and latitude")
    return np.stack([longitudes, found[:, 1]], axis=1)


def _with_steps(ring: Points) -> npt.NDArray[np.float64]:
    """Return a ring [N, 2] without edges of more than _STEP pixels."""
    edges = np.roll(ring, -1, axis=0) - ring
    counts = -(-np.abs(edges).max(axis=1) // _STEP)
    edge = np.repeat(np.arange(len(ring)), counts)
    part = (np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[edge]
    return np.asarray(ring[edge] + edges[edge] * part[:, None], np.float64)


def _transform(crs: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Any:
    try:
        return transform(crs, "OGC:CRS84", x, y)
    except (RasterioError, CRSError, CPLE_BaseError) as error:
        raise M2FError(f"no place on earth for {_short(crs)}: {_short(str(error))}") from error


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _oriented(rings: Sequence[Degrees]) -> list[Degrees]:
    """Return rings so that the exterior is counterclockwise, and its holes lie in its range of longitudes."""
    exterior = rings[0]
    middle = (exterior[:, 0].min() + exterior[:, 0].max()) / 2
    turns = [round((middle - ring[0, 0]) / 360) for ring in rings]
    rings = [_turned(ring, turn) for ring, turn in zip(rings, turns, strict=True)]
    return [ring[::-1] for ring in rings] if _area(exterior) < 0 else rings


def _area(ring: Degrees) -> float:
    """Return the area of a ring in square metres; negative if it is clockwise."""
    x, sine = np.radians(ring[:, 0]), np.sin(np.radians(ring[:, 1]))
    e = _ECCENTRICITY
    y = (1 - e * e) * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e) / 2
    x, y = x - x[0], y - y[0]  # keeps the digits of a small ring
    return float(_AXIS**2 / 2 * (x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _cut(rings: Sequence[Degrees]) -> list[list[Degrees]]:
    """Return the pieces of a polygon on both sides of the antimeridian."""
    west, east = rings[0][:, 0].min(), rings[0][:, 0].max()
    if west >= -180 and east <= 180:
        return [list(rings)]
    whole = shapely.Polygon(rings[0], rings[1:])
    pieces = []
    for turn in range(int((west + 180) // 360), int((east + 180) // 360) + 1):
        part = shapely.intersection(whole, shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90))
        for piece in shapely.get_parts(part):
            if piece.area > 0:
                upright = shapely.orient_polygons(piece)
                found = [np.asarray(ring.coords)[:-1] for ring in (upright.exterior, *upright.interiors)]
                pieces.append([_turned(ring, -turn) for ring in found])
    return pieces


def _turned(ring: Degrees, turns: int) -> Degrees:
    """Return a ring, moved east by whole turns around the earth."""
    return np.stack([ring[:, 0] + 360 * turns, ring[:, 1]], axis=1)


def _wrapped(longitude: float) -> float:
    """Return a longitude from -180 to 180."""
    return float(longitude if -180 <= longitude <= 180 else (longitude + 180) % 360 - 180)
