"""`m2f predict --geo` on a fake server: a GeoTIFF's instances on earth, and images that are nowhere."""

import json
import os
import re
import sys

import numpy as np
import pytest
import shapely
import shapely.geometry
from blob_server import answer, blobs, picture_of
from click.testing import CliRunner
from fake_server import serving
from PIL import Image

pytest.importorskip("rasterio")

import rasterio.warp
from rasterio.transform import from_origin

from m2f_cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

PICTURE = picture_of(90, 130, (3, 4, 12, 20), (35, 30, 48, 44), (100, 25, 110, 40))
TRANSFORM = from_origin(500_000, 5_400_000, 2, 2)
requests = []


def counted(request):
    requests.append(request)
    return answer(request)


@pytest.fixture(scope="module")
def url():
    with serving(counted) as fake:
        yield fake.url


@pytest.fixture
def folder(tmp_path):
    requests.clear()
    place = {"map.tif": {"crs": "EPSG:32633", "transform": TRANSFORM}, "no crs.tif": {"transform": TRANSFORM}}
    for name, options in place.items():
        with rasterio.open(
            tmp_path / name, "w", driver="GTiff", height=90, width=130, count=3, dtype="uint8", **options
        ) as file:  # fmt: skip
            file.write(PICTURE.transpose(2, 0, 1))
    Image.fromarray(PICTURE).save(tmp_path / "plain.png")
    Image.fromarray(PICTURE).save(tmp_path / "plain.tif")
    return tmp_path


def m2f(folder, url, *arguments):
    before = os.getcwd()  # noqa: PTH109
    os.chdir(folder)
    try:
        return CliRunner().invoke(main, ["predict", *arguments, "--url", url])
    finally:
        os.chdir(before)


@pytest.mark.parametrize("tile", [(), ("--tile", "50", "--overlap", "0.4")], ids=["whole", "tiles"])
def test_instances_on_earth(folder, url, tile):
    done = m2f(folder, url, "map.tif", "--out", "out", "--geo", "--jsonl", "lines", *tile)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "map.geojson" in done.output
    features = json.loads((folder / "out/map.geojson").read_text())["features"]
    masks = blobs(PICTURE)
    assert len(features) == len(masks)
    assert sorted(feature["properties"]["area"] for feature in features) == sorted(int(mask.sum()) for mask in masks)
    for feature in features:
        properties = feature["properties"]
        assert properties["area_m2"] == pytest.approx(4 * properties["area"], rel=1e-3)  # UTM's scale is 0.9996
        in_utm = rasterio.warp.transform_geom("EPSG:4326", "EPSG:32633", feature["geometry"])
        x, y = np.array(shapely.geometry.shape(in_utm).geoms[0].exterior.coords).T
        column, row = (x.min() - 500_000) / 2, (5_400_000 - y.max()) / 2
        assert any(abs(column - np.nonzero(m)[1].min()) + abs(row - np.nonzero(m)[0].min()) < 1e-3 for m in masks)
    (line,) = map(json.loads, (folder / "lines").read_text().splitlines())
    assert line["geojson"] == "map.geojson"
    other = m2f(folder, url, "map.tif", "--out", "out", "--jsonl", "lines", *tile)
    assert other.exit_code == 1
    assert "comes from a run with other settings" in other.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no crs.tif", "it has no coordinate reference system; gdal_edit.py -a_srs"),
        ("plain.tif", "the TIFF does not say where on earth it is: it has no transform"),
        ("plain.png", "not a GeoTIFF, which alone says where on earth it is"),
        ("-", "only a file on this machine, a GeoTIFF, says where on earth it is"),
    ],
)
def test_an_image_that_is_nowhere_fails_before_any_request(folder, url, name, message):
    done = m2f(folder, url, name, "--out", "out", "--geo")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[0].startswith(f"m2f: {name}: ")
    assert message in done.stderr
    assert done.stderr.count(name) == 1 or name == "-"
    assert requests == []


def test_without_rasterio_the_message_says_what_to_install(folder, url, monkeypatch):
    monkeypatch.setitem(sys.modules, "m2f_client.pictures.tiff", None)  # as if it could not be imported
    done = m2f(folder, url, "map.tif", "--out", "out", "--geo")
    assert done.exit_code == 1
    message = "m2f: map.tif: a GeoTIFF is read with rasterio: pip install 'm2f[large]'"
    assert done.stderr.splitlines()[0] == message
    assert requests == []


def test_geo_needs_a_folder(folder, url):
    done = m2f(folder, url, "map.tif", "--geo")
    assert done.exit_code == 2
    assert "--geo needs --out DIR" in done.stderr


def test_a_truncated_tiff_names_the_tile_and_keeps_the_others(folder, url):
    path = folder / "cut.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=90,
        width=130,
        count=3,
        dtype="uint8",
        tiled=True,
        blockxsize=32,
        blockysize=32,
    ) as file:
        file.write(PICTURE.transpose(2, 0, 1))
    path.write_bytes(path.read_bytes()[:-4000])
    arguments = ("cut.tif", "plain.png", "--out", "out", "--jsonl", "lines", "--tile", "50", "--overlap", "0.4")
    done = m2f(folder, url, *arguments, "--concurrency", "1")
    assert done.exit_code == 1
    first, *_ = done.stderr.splitlines()
    place = r"x \d+ to \d+, y \d+ to \d+"
    assert re.match(rf"m2f: cut.tif: tile (\d+) of 12 \({place}\): the part at {place} is damaged or missing: ", first)
    assert done.stderr.count("cut.tif: tile") == 1
    kept = len(requests) - 12  # plain.png has 12
    assert 1 <= kept < 12
    again = m2f(folder, url, *arguments, "--concurrency", "1")
    assert again.exit_code == 1
    assert f"cut.tif: {kept} of 12 tiles done already" in again.stderr
    assert len(requests) == kept + 12
