"""GeoJSON (RFC 7946): on earth if the picture says where it is, else in pixels.

In pixels, coordinates are those of the upright image, x to the right and y down, instead of longitude and latitude.
Rings follow the specification's right-hand rule as if y pointed up: on a screen, exteriors run clockwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.errors import M2FError
from m2f_client.converters.polygons import Polygon, trace
from m2f_client.converters.result_like import ResultLike
from m2f_client.pictures.geo import Geo

_DIGITS = 9  # of degrees: a tenth of a millimetre


def feature_collection(
    result: ResultLike, class_names: Sequence[str] | None = None, *, geo: Geo | None = None
) -> dict[str, Any]:
    """Return a FeatureCollection with a Feature for each instance.

    The geometry is a MultiPolygon with holes; null if the mask is empty or was not made. The properties are
    `class_name`, `label`, `score` and, if the result has areas, `area` in pixels.

    In pixels, the `bbox` is x1 y1 x2 y2. On earth, coordinates are longitude and latitude on WGS 84, and the `bbox` is
    west, south, east, north. One more property is `area_m2`: the area in square metres, by Lambert's cylindrical
    equal-area projection of the ellipsoid. A polygon across the antimeridian is cut there.

    Args:
        result: needs `scores`, `labels`, `boxes` and masks (`rle`, `packed_masks` or `masks`).
        class_names: the model's class names; None: class numbers.
        geo: where on earth the picture is, such as `read_geo(path)`; None: coordinates are pixels.

    Raises:
        OutputNotRequested: one of the needed outputs is missing.
        M2FError: the extra `large` is not installed, or an instance has no place on earth; see `earth.place`.
    """
    features = []
    for index, name in enumerate(result.names(class_names)):
        properties = {"class_name": name, "label": int(result.labels[index]), "score": float(result.scores[index])}
        if "areas" in result.outputs:
            properties["area"] = int(result.outputs["areas"][index])
        box, polygons = result.boxes[index].tolist(), trace(result.runs(index))
        if geo is None:
            feature = {"bbox": box, "geometry": _multi_polygon(map(_rings, polygons))}
        else:
            feature, area = _on_earth(polygons, geo)
            properties["area_m2"] = area
        features.append({"type": "Feature", **feature, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def _on_earth(polygons: Sequence[Polygon], geo: Geo) -> tuple[dict[str, Any], float]:
    """Return the bbox and geometry of a feature, and its area in square metres."""
    if not polygons:
        return {"geometry": None}, 0.0
    try:
        from m2f_client.converters.earth import place  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise M2FError(f"coordinates on earth need rasterio and shapely: pip install 'm2f[large]' ({error})") from error
    found = place(polygons, geo)
    box = [round(degrees, _DIGITS) for degrees in found.box]
    return {"bbox": box, "geometry": _multi_polygon(found.polygons)}, found.area


def _rings(polygon: Polygon) -> tuple[npt.NDArray[Any], ...]:
    return (polygon.exterior, *polygon.holes)


def _multi_polygon(polygons: Iterable[Sequence[npt.NDArray[Any]]]) -> dict[str, Any] | None:
    coordinates = [[_closed(ring) for ring in rings] for rings in polygons]
    return {"type": "MultiPolygon", "coordinates": coordinates} if coordinates else None


def _closed(ring: npt.NDArray[Any]) -> list[list[float]]:
    points: list[list[float]] = np.round(ring, _DIGITS).tolist()
    return [*points, points[0]]
