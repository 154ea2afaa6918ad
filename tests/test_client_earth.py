"""GeoJSON on earth, held against rasterio's own features, shapely and pyproj."""

import json
import sys

import numpy as np
import pytest
import shapely
import shapely.geometry

pytest.importorskip("rasterio")
pyproj = pytest.importorskip("pyproj")

import rasterio.features  # noqa: E402
import rasterio.warp  # noqa: E402
from rasterio.transform import Affine  # noqa: E402

from m2f.errors import M2FError  # noqa: E402
from m2f_client.fake import result_of  # noqa: E402
from m2f_client.pictures.geo import Geo  # noqa: E402

WGS84 = pyproj.Geod(ellps="WGS84")
UTM = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
PLACES = {
    "UTM": ("EPSG:32633", UTM),
    "UTM, south up": ("EPSG:32633", Affine(0.5, 0, 500_000, 0, 0.5, 5_400_000)),
    "UTM, rotated": ("EPSG:32633", UTM @ Affine.rotation(37)),
    "UTM, mirrored": ("EPSG:32633", Affine(-0.5, 0, 500_000, 0, -0.5, 5_400_000)),
    "degrees": ("EPSG:4326", Affine(1e-4, 0, 13.4, 0, -1e-4, 52.5)),
    "Web Mercator": ("EPSG:3857", Affine(10, 0, -8_000_000, 0, -10, -4_000_000)),
    "south pole": ("EPSG:3031", Affine(100, 0, 1_000_000, 0, -100, 1_000_000)),
    "feet": ("EPSG:2263", Affine(1, 0, 1_000_000, 0, -1, 200_000)),
    "WKT": (pyproj.CRS("EPSG:25832").to_wkt(), Affine(2, 0, 600_000, 0, -2, 5_600_000)),
}  # fmt: skip


def masks():
    found = np.zeros((3, 60, 80), np.uint8)
    found[0, 5:40, 10:50] = 1
    found[0, 15:25, 20:30] = 0
    found[0, 50:55, 60:75] = 1
    found[1, :24, :30] = np.random.default_rng(0).random((24, 30)) < 0.4
    return found  # the third is empty


def located(masks, crs, transform):
    result = result_of(masks, labels=list(range(len(masks))))
    return json.loads(json.dumps(result.to_geojson(geo=Geo(tuple(transform)[:6], crs))))["features"]


@pytest.mark.parametrize(("crs", "transform"), PLACES.values(), ids=PLACES)
def test_features_are_those_of_rasterio(crs, transform):
    features = located(masks(), crs, transform)
    assert features[2]["geometry"] is None
    assert features[2]["properties"]["area_m2"] == 0
    for feature, mask in zip(features[:2], masks(), strict=False):
        ours = shapely.geometry.shape(feature["geometry"])
        pieces = [shape for shape, value in rasterio.features.shapes(mask, transform=transform) if value]
        theirs = [rasterio.warp.transform_geom(crs, "EPSG:4326", piece) for piece in pieces]
        theirs = shapely.union_all([shapely.geometry.shape(piece).buffer(0) for piece in theirs])
        assert ours.is_valid
        assert ours.symmetric_difference(theirs).area <= 2e-4 * theirs.area  # coordinates have 9 digits
        assert np.allclose(ours.bounds, feature["bbox"], atol=1e-9)
        for polygon in feature["geometry"]["coordinates"]:
            rings = [shapely.LinearRing(ring) for ring in polygon]
            assert all(ring[0] == ring[-1] for ring in polygon)
            assert [ring.is_ccw for ring in rings] == [True] + [False] * (len(rings) - 1)
        expected = sum(WGS84.geometry_area_perimeter(piece)[0] for piece in ours.geoms)
        assert feature["properties"]["area_m2"] == pytest.approx(expected, rel=5e-5)
        assert feature["properties"]["area"] == mask.sum()


def test_a_long_edge_follows_its_parallel():
    mask = np.ones((1, 100, 20_000), np.uint8)
    (feature,) = located(mask, "EPSG:32633", Affine(10, 0, 400_000, 0, -10, 6_600_000))  # 200 km wide, at 59.5 degrees
    ring = np.array(feature["geometry"]["coordinates"][0][0])
    y = np.array([rasterio.warp.transform("EPSG:4326", "EPSG:32633", *points.T)[1] for points in (ring, halfway(ring))])
    top = np.abs(y[0] - 6_600_000) < 1
    top = top[1:] & top[:-1]
    assert top.sum() > 300
    assert np.abs(y[1, :-1][top] - 6_600_000).max() < 1  # metres, between the points
    assert feature["properties"]["area_m2"] == pytest.approx(200_000 * 1000, rel=2e-3)  # UTM's scale


def halfway(ring):
    return (ring + np.roll(ring, -1, axis=0)) / 2


def test_the_area_between_parallels_and_meridians():
    (feature,) = located(np.ones((1, 100, 100), np.uint8), "EPSG:4326", Affine(0.01, 0, 0, 0, -0.01, 61))
    assert feature["bbox"] == [0, 60, 1, 61]
    side = np.linspace(0, 1, 10_000)
    expected, _ = WGS84.polygon_area_perimeter([*side, *side[::-1]], [*(0 * side + 60), *(0 * side + 61)])
    assert feature["properties"]["area_m2"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32601", Affine(2000, 0, 100_000, 0, -2000, 2_000_000)),
        ("EPSG:4326", Affine(0.02, 0, 179, 0, -0.02, 18)),  # goes on beyond 180
        ("EPSG:3832", Affine(2000, 0, 3_200_000, 0, -2000, 2_000_000)),  # Mercator of the Pacific
    ],
)
def test_a_polygon_across_the_antimeridian_is_cut_there(crs, transform):
    mask = np.ones((1, 50, 100), np.uint8)
    mask[0, 10:40, 3:95] = 0  # a ring around the antimeridian
    (feature,) = located(mask, crs, transform)
    whole = shapely.geometry.shape(feature["geometry"])
    assert whole.is_valid
    west, _, east, _ = feature["bbox"]
    assert west > 0 > east
    assert whole.bounds[::2] == (-180, 180)
    sides = [polygon.bounds for polygon in whole.geoms]
    assert len(sides) == 2
    assert sorted((round(x1, 6), round(x2, 6)) for x1, _, x2, _ in sides) == [
        (-180, round(east, 6)),
        (round(west, 6), 180),
    ]
    for polygon in whole.geoms:
        assert polygon.exterior.is_ccw
    expected = sum(abs(WGS84.geometry_area_perimeter(piece)[0]) for piece in whole.geoms)
    assert feature["properties"]["area_m2"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("west", [-180, 0])
def test_the_whole_earth(west):
    (feature,) = located(np.ones((1, 180, 360), np.uint8), "EPSG:4326", Affine(1, 0, west, 0, -1, 90))
    assert feature["bbox"] == [-180, -90, 180, 90]
    assert feature["properties"]["area_m2"] == pytest.approx(510_065_621_724_088, rel=1e-12)  # WGS 84's


def test_the_box_of_two_pieces_on_both_sides_of_the_antimeridian():
    mask = np.zeros((1, 10, 200), np.uint8)
    mask[0, :, 20:40] = mask[0, :, 160:180] = 1
    (feature,) = located(mask, "EPSG:4326", Affine(0.01, 0, 179, 0, -0.01, 18))
    assert feature["bbox"] == pytest.approx([179.2, 17.9, -179.2, 18])
    assert len(feature["geometry"]["coordinates"]) == 2


@pytest.mark.parametrize(
    ("crs", "transform", "message"),
    [
        ("EPSG:3031", Affine(1000, 0, -50_000, 0, -1000, 50_000), "a pole inside"),
        ("EPSG:32633", Affine(1e6, 0, -1e9, 0, -1e6, 1e9), "no place on earth for EPSG:32633: "),
        ("nonsense", UTM, "no place on earth for nonsense: "),
        ('LOCAL_CS["a plan",UNIT["metre",1]]', UTM, "no place on earth for LOCAL_CS"),
    ],
)
def test_what_has_no_place_on_earth_is_refused(crs, transform, message):
    with pytest.raises(M2FError, match=message):
        located(np.ones((1, 100, 100), np.uint8), crs, transform)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "m2f_client.converters.earth", None)
    with pytest.raises(M2FError, match=r"need rasterio and shapely: pip install 'm2f\[large\]'"):
        located(np.ones((1, 4, 4), np.uint8), "EPSG:32633", UTM)
