"""GeoJSON, read back by shapely."""

import json

import numpy as np
import shapely
import shapely.geometry

from m2f_client.fake import result_of


def ring_and_two_pixels():
    masks = np.zeros((3, 9, 12))
    masks[0, 1:8, 1:8] = 1
    masks[0, 3:5, 3:6] = 0
    masks[1, 8, 11] = masks[1, 7, 10] = 1
    return masks  # the third is empty


def test_geometries_are_the_masks_and_follow_the_specification():
    masks = ring_and_two_pixels()
    result = result_of(masks, labels=[1, 0, 5])
    document = json.loads(json.dumps(result.to_geojson(["cat", "dog"])))
    assert document["type"] == "FeatureCollection"
    assert [feature["type"] for feature in document["features"]] == ["Feature"] * 3
    assert document["features"][2]["geometry"] is None  # RFC 7946, 3.2: a feature without a place
    for feature, mask in list(zip(document["features"], masks, strict=True))[:2]:
        assert feature["geometry"]["type"] == "MultiPolygon"
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.area == mask.sum() == feature["properties"]["area"]
        assert list(shape.bounds) == feature["bbox"]
        for polygon in feature["geometry"]["coordinates"]:
            rings = [shapely.LinearRing(ring) for ring in polygon]
            assert all(ring[0] == ring[-1] for ring in polygon)
            assert [ring.is_ccw for ring in rings] == [True] + [False] * (len(rings) - 1)
    assert [len(f["geometry"]["coordinates"]) for f in document["features"][:2]] == [1, 2]
    assert len(document["features"][0]["geometry"]["coordinates"][0]) == 2  # the hole is kept


def test_properties():
    feature = result_of(np.ones((1, 3, 4)), scores=[0.5], labels=[1]).to_geojson(["cat", "dog"])["features"][0]
    assert feature["properties"] == {"class_name": "dog", "label": 1, "score": 0.5, "area": 12}
    assert feature["bbox"] == [0.0, 0.0, 4.0, 3.0]
