"""GeoJSON (RFC 7946) in pixels.

Coordinates are pixels of the upright image, x to the right and y down, instead of longitude and latitude. Rings follow
the specification's right-hand rule as if y pointed up: on a screen, exteriors run clockwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m2f_client.converters.polygons import Points, Polygon, trace
from m2f_client.converters.result_like import ResultLike


def feature_collection(result: ResultLike, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a FeatureCollection with a Feature for each instance.

    The geometry is a MultiPolygon with holes; null if the mask is empty or was not made. The `bbox` is x1 y1 x2 y2. The
    properties are `class_name`, `label`, `score` and, if the result has areas, `area` in pixels.

    Args:
        result: needs `scores`, `labels`, `boxes` and masks (`rle`, `packed_masks` or `masks`).
        class_names: the model's class names; None: class numbers.

    Raises:
        OutputNotRequested: one of the needed outputs is missing.
    """
    features = []
    for index, name in enumerate(result.names(class_names)):
        properties = {"class_name": name, "label": int(result.labels[index]), "score": float(result.scores[index])}
        if "areas" in result.outputs:
            properties["area"] = int(result.outputs["areas"][index])
        features.append(
            {
                "type": "Feature",
                "bbox": result.boxes[index].tolist(),
                "geometry": _multi_polygon(trace(result.runs(index))),
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
