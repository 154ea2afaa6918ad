"""GeoJSON (RFC 7946) in pixels.

Coordinates are pixels of the upright image, x to the right and y down, not longitude and latitude: the specification
leaves other systems to prior arrangement. Rings follow its right-hand rule by their numbers: exteriors counterclockwise
where y points up, which looks clockwise on a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from m2f_client.converters.polygons import Points, Polygon, trace

if TYPE_CHECKING:
    from m2f_client.result import Result


def feature_collection(result: Result, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a FeatureCollection, one Feature an instance.

    A Feature's geometry is a MultiPolygon with holes, or null where the mask is empty or was not made. Its `bbox` is
    the box, x1 y1 x2 y2. Its properties are `class_name`, `label`, `score` and, where asked for, `area` in pixels.

    Args:
        result: needs `scores`, `labels`, `boxes` and masks (`rle`, `packed_masks` or `masks`).
        class_names: the model's names; None: class numbers.

    Raises:
        OutputNotRequested: one of the needed outputs is missing.
    """
    features = []
    for index, name in enumerate(result.names(class_names)):
        properties = {"class_name": name, "label": int(result.labels[index]), "score": float(result.scores[index])}
        if "areas" in result.outputs:
            properties["area"] = int(result.areas[index])
        features.append(
            {
                "type": "Feature",
                "bbox": result.boxes[index].tolist(),
                "geometry": _multi_polygon(trace(result.mask(index))),
                "properties": properties,
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _multi_polygon(polygons: Sequence[Polygon]) -> dict[str, Any] | None:
    if not polygons:
        return None
    return {
        "type": "MultiPolygon",
        "coordinates": [[_closed(ring) for ring in (polygon.exterior, *polygon.holes)] for polygon in polygons],
    }


def _closed(ring: Points) -> list[list[int]]:
    points: list[list[int]] = ring.tolist()
    return [*points, points[0]]
