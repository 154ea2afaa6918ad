"""Windows of TIFF files, held against Pillow's pixels of the whole file."""

import io
import itertools
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from tiffs import picture_tags, tiff

rasterio = pytest.importorskip("rasterio")

from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.enums import ColorInterp  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402
from rasterio.windows import Window  # noqa: E402

from m2f.errors import M2FError  # noqa: E402
from m2f.runs import Rect  # noqa: E402
from m2f_client import Client  # noqa: E402
from m2f_client.client_errors import UnreadableImage  # noqa: E402
from m2f_client.fake import FakeTransport, result_of, stacked  # noqa: E402
from m2f_client.images import decoded  # noqa: E402
from m2f_client.pictures.opening import open_picture, read_geo  # noqa: E402
from m2f_client.pictures.tiff import TiffPicture  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

HEIGHT, WIDTH = 150, 200
Y, X = np.mgrid[:HEIGHT, :WIDTH]
PHOTO = np.stack([X, Y, (X * Y) // 117], axis=-1).astype(np.uint8)
DEEP = PHOTO.astype(np.uint16) * 257 - 3
PLACE = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}
TILED = {"tiled": True, "blockxsize": 64, "blockysize": 32}


def write(path, pixels=PHOTO, **options):
    """A TIFF written by GDAL, of pixels [H, W] or [H, W, bands]."""
    bands = np.atleast_3d(pixels).transpose(2, 0, 1)
    colours = options.pop("colours", None)
    palette = options.pop("palette", None)
    with rasterio.open(
        path, "w", driver="GTiff", height=bands.shape[1], width=bands.shape[2], count=len(bands), dtype=bands.dtype,
        **options,
    ) as file:  # fmt: skip
        if colours:
            file.colorinterp = colours
        if palette:
            file.write_colormap(1, palette)
        file.write(bands)
    return path


def by_pillow(path, image, **options):
    image.save(path, "TIFF", **options)
    return path


RGB = {"photometric": "rgb"}
FILES = {
    "strips": lambda path: write(path, blockysize=7),
    "one strip": lambda path: write(path, blockysize=HEIGHT, compress="deflate"),
    "tiles": lambda path: write(path, **TILED),
    "lzw": lambda path: write(path, **TILED, compress="lzw", predictor=2),
    "deflate": lambda path: write(path, **TILED, compress="deflate", predictor=2),
    "zstd": lambda path: write(path, **TILED, compress="zstd"),
    "packbits": lambda path: write(path, **TILED, compress="packbits"),
    "jpeg": lambda path: write(path, blockysize=16, compress="jpeg"),
    "jpeg ycbcr": lambda path: by_pillow(path, Image.fromarray(PHOTO), compression="jpeg"),
    "planes": lambda path: write(path, **TILED, interleave="band", compress="lzw"),
    "big": lambda path: write(path, **TILED, BIGTIFF="YES"),
    "big endian": lambda path: write(path, DEEP, **TILED, **RGB, ENDIANNESS="BIG"),
    "16 bits": lambda path: write(path, DEEP, **TILED, **RGB),
    "16 bits grey": lambda path: write(path, DEEP[..., 0], **TILED),
    "grey": lambda path: write(path, PHOTO[..., 0], **TILED),
    "grey, white is 0": lambda path: write(path, PHOTO[..., 0], photometric="miniswhite"),
    "black and white": lambda path: by_pillow(path, Image.fromarray(PHOTO).convert("1"), compression="group4"),
    "alpha": lambda path: write(path, np.dstack([PHOTO, X]).astype(np.uint8), **TILED, **RGB, alpha="unspecified"),
    "grey and alpha": lambda path: by_pillow(path, Image.fromarray(PHOTO).convert("LA")),
    "palette": lambda path: by_pillow(path, Image.fromarray(PHOTO).quantize(64)),
    "cmyk": lambda path: by_pillow(path, Image.fromarray(PHOTO).convert("CMYK")),
    "turned": lambda path: by_pillow(path, Image.fromarray(PHOTO), exif=turned(6)),
    "place on earth": lambda path: write(path, **PLACE),
}


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def as_colour(pixels):
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_windows_have_the_pixels_that_pillow_reads(make, tmp_path):
    path = make(tmp_path / "a.tif")
    whole = decoded(path, max_pixels=10**6, max_side=10**6, max_bytes=10**7)
    with open_picture(path) as picture:
        assert (picture.height, picture.width) == whole.shape[:2]
        for y, x in itertools.product((0, 31, 100), repeat=2):
            window = picture.window(Rect(x, y, x + 50, y + 50))
            assert window.flags.c_contiguous
            np.testing.assert_array_equal(as_colour(window), whole[y : y + 50, x : x + 50])
        assert np.abs(picture.reduced(150).astype(int)[0, 0] - whole[:150, :150].mean(axis=(0, 1))).max() <= 1


def test_what_pillow_does_not_read(tmp_path):
    big = write(tmp_path / "big.tif", **TILED, BIGTIFF="YES", ENDIANNESS="BIG", compress="lzw")
    with open_picture(big) as picture:
        np.testing.assert_array_equal(picture.window(Rect(60, 20, 130, 90)), PHOTO[20:90, 60:130])
    twelve = write(tmp_path / "12.tif", DEEP >> 4, **RGB, NBITS=12)
    with open_picture(twelve) as picture:
        np.testing.assert_array_equal(picture.window(Rect(60, 20, 130, 90)), DEEP[20:90, 60:130] >> 8)
    four = write(tmp_path / "4.tif", PHOTO[..., 0] >> 4, NBITS=4)
    with open_picture(four) as picture:
        np.testing.assert_array_equal(picture.window(Rect(0, 0, WIDTH, 1)), (PHOTO[:1, :, 0] >> 4) * 17)


def test_parts_that_a_sparse_file_leaves_out_are_black(tmp_path):
    path = tmp_path / "sparse.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=100_000, width=100_000, count=3, dtype="uint8", tiled=True, blockxsize=256,
        blockysize=256, compress="deflate", SPARSE_OK=True, BIGTIFF="YES",
    ) as file:  # fmt: skip
        file.write(np.full((3, 256, 256), 200, np.uint8), window=Window(99_840, 51_200, 160, 256))
    with open_picture(path) as picture:
        assert (picture.height, picture.width) == (100_000, 100_000)
        window = picture.window(Rect(99_800, 51_150, 100_000, 51_300))
    expected = np.zeros((150, 200, 3), np.uint8)
    expected[50:, 40:] = 200
    np.testing.assert_array_equal(window, expected)


def test_the_smaller_copies_of_a_pyramid_do_not_count(tmp_path):
    file = io.BytesIO()
    copies = [Image.fromarray(PHOTO[::step, ::step]) for step in (1, 2, 4)]
    copies[0].save(file, "TIFF", save_all=True, append_images=copies[1:])
    path = tmp_path / "slide.svs"
    path.write_bytes(file.getvalue())
    with open_picture(path) as picture:
        np.testing.assert_array_equal(picture.window(Rect(10, 20, 60, 90)), PHOTO[20:90, 10:60])


def test_odd_tags_do_not_matter(tmp_path, capfd):
    odd = [(296, 3, 1, 128), (65_000, 99, 1, 7)]  # a resolution unit and a type that do not exist
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(picture_tags(*odd), pixels=bytes(range(64))))
    with open_picture(path) as picture:
        np.testing.assert_array_equal(picture.window(Rect(0, 0, 8, 8)), np.arange(64).reshape(8, 8))
    assert capfd.readouterr() == ("", "")


def test_several_threads_read_at_once(tmp_path):
    with open_picture(write(tmp_path / "a.tif", **TILED, compress="deflate")) as picture:
        rects = [Rect(x, y, x + 40, y + 30) for y in range(0, 120, 7) for x in range(0, 160, 9)]
        wrong = []

        def read(part):
            for x1, y1, x2, y2 in part:
                if not np.array_equal(picture.window(Rect(x1, y1, x2, y2)), PHOTO[y1:y2, x1:x2]):
                    wrong.append((x1, y1))

        threads = [threading.Thread(target=read, args=(rects[start::4],)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


UNCLEAR = {
    "float": (lambda path: write(path, PHOTO.astype(np.float32)), "values of type float32.*allowed are 8 and 16 bits"),
    "sign": (lambda path: write(path, PHOTO.astype(np.int16)), "values of type int16"),
    "bands": (
        lambda path: write(path, np.dstack([DEEP, DEEP])),
        "6 bands .*allowed are red, green and blue, or one of grey.*gdal_translate -b 3",
    ),
    "pages": (
        lambda path: by_pillow(
            path, Image.fromarray(PHOTO), save_all=True, append_images=[Image.fromarray(PHOTO)] * 2
        ),
        "the TIFF has 3 pictures; allowed is 1",
    ),
    "large strips": (
        lambda path: two_strips(path, 60_000),
        "strips or tiles of 1716 MiB, each of which is read as a whole; allowed are 1024 MiB.*gdal_translate -co TILED",
    ),
    "side": (lambda path: by_hand(path, **{"256": 5_000_000, "257": 1}), "5000000 x 1 pixels; allowed are 4194303"),
    "cut off in its tags": (lambda path: cut(write(path), 90), "the TIFF cannot be read"),
    "only a beginning": (lambda path: cut(write(path), 6), "the TIFF cannot be read"),
}  # fmt: skip


def by_hand(path, **tags):
    path.write_bytes(tiff(picture_tags(**tags)))
    return path


def two_strips(path, side):
    tags = {tag: value for tag, _, _, value in picture_tags(**{"256": side, "257": side, "278": side // 2, "259": 8})}
    counts = {273: 2, 279: 2}  # both strips are left out: their positions are zeros
    path.write_bytes(tiff([(tag, 4, counts.get(tag, 1), 8 if tag in counts else tags[tag]) for tag in sorted(tags)]))
    return path


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


@pytest.mark.parametrize(("make", "message"), UNCLEAR.values(), ids=UNCLEAR)
def test_a_file_without_one_clear_picture_is_refused(make, message, tmp_path):
    path = make(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match=f"^{path}: .*{message}") as caught:
        open_picture(path)
    assert "\n" not in str(caught.value)


def test_bands_with_colours_are_taken_wherever_they_are(tmp_path):
    colours = [ColorInterp.blue, ColorInterp.undefined, ColorInterp.green, ColorInterp.red]
    bands = np.dstack([PHOTO[..., 2], PHOTO[..., 0] * 0, PHOTO[..., 1], PHOTO[..., 0]])
    with open_picture(write(tmp_path / "a.tif", bands, colours=colours)) as picture:
        np.testing.assert_array_equal(picture.window(Rect(0, 0, WIDTH, HEIGHT)), PHOTO)


@pytest.mark.parametrize("options", [{}, TILED, {**TILED, "compress": "deflate"}, {**TILED, "compress": "jpeg"}])
def test_of_a_truncated_file_only_the_missing_part_cannot_be_read(options, tmp_path, capfd):
    options = {**options, "blockxsize": 64, "blockysize": 64} if "compress" in options else options
    path = write(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 256, PHOTO.shape, np.uint8), **options)
    cut(path, path.stat().st_size * 3 // 4)
    with open_picture(path) as picture:
        picture.window(Rect(0, 0, 60, 30))
        with pytest.raises(UnreadableImage, match="the part at x 150 to 200, y 120 to 150 is damaged or missing: "):
            picture.window(Rect(150, 120, 200, 150))
        picture.window(Rect(0, 0, 60, 30))
    assert capfd.readouterr() == ("", "")


def test_a_picture_closed_twice_and_used_in_two_blocks(tmp_path):
    with TiffPicture(str(write(tmp_path / "a.tif"))) as picture:
        pass
    picture.close()


def test_without_rasterio_a_tiff_is_decoded_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "m2f_client.pictures.tiff", None)
    path = write(tmp_path / "a.tif", **PLACE)
    with open_picture(path) as picture:
        np.testing.assert_array_equal(picture.window(Rect(3, 4, 50, 60)), PHOTO[4:60, 3:50])
        assert picture.geo is None
    large = r"windows of a TIFF of any size are read with rasterio: pip install 'm2f\[large\]'"
    with pytest.raises(UnreadableImage, match=rf"^{tmp_path}/large.tif: .*40000 x 40000; allowed are .*; {large}$"):
        open_picture(by_hand(tmp_path / "large.tif", **{"256": 40_000, "257": 40_000}))
    with pytest.raises(M2FError, match=rf"^{path}: .*pip install 'm2f\[large\]'"):
        read_geo(path)


def test_one_tile_of_a_file_that_only_rasterio_reads(tmp_path):
    sent = []

    def handle(request):
        sent.append(request.inputs["image"].item())
        return stacked([result_of(np.ones((1, HEIGHT, WIDTH), bool))])

    path = write(tmp_path / "a.tif", **TILED, BIGTIFF="YES", ENDIANNESS="BIG", compress="lzw")
    with Client(transport=FakeTransport(handle)) as client:
        assert len(client.predict_tiled(path, tile=300)) == 1
    np.testing.assert_array_equal(decoded(sent[0], max_pixels=10**6, max_side=10**6, max_bytes=10**7), PHOTO)


def test_where_a_picture_is_on_earth(tmp_path):
    with open_picture(write(tmp_path / "a.tif", **PLACE)) as picture:
        assert picture.geo.transform == (0.5, 0, 500_000, 0, -0.5, 5_400_000)
        assert picture.geo.crs == "EPSG:32633"
    for half in ("crs", "transform"):
        with open_picture(write(tmp_path / f"{half}.tif", **{half: PLACE[half]})) as picture:
            assert picture.geo is None


def test_control_points_are_no_place(tmp_path):
    points = [GroundControlPoint(y, x, 15 + x / 1e4, 50 - y / 1e4) for y in (0, HEIGHT) for x in (0, WIDTH)]
    path = write(tmp_path / "a.tif", gcps=points, crs="EPSG:4326")
    with pytest.raises(UnreadableImage, match="it has no transform, only control points; gdalwarp makes one of them"):
        read_geo(path)
