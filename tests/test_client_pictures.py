"""Pictures that are read in parts, from memory."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from m2f.runs import Rect
from m2f_client.client_errors import InvalidRequest, UnreadableImage
from m2f_client.pictures.opening import open_picture

RNG = np.random.default_rng(7)
PHOTO = RNG.integers(0, 256, (37, 61, 3), np.uint8)


def png(pixels=PHOTO):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def tiff(pixels=PHOTO):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "tiff")
    return file.getvalue()


SOURCES = {
    "array": lambda _: PHOTO,
    "pillow": lambda _: Image.fromarray(PHOTO),
    "bytes": lambda _: png(),
    "bytes of a tiff": lambda _: tiff(),
    "open file": lambda _: io.BytesIO(png()),
    "path": lambda folder: written(folder / "a.png", png()),
    "text of a path": lambda folder: str(written(folder / "a.png", png())),
}


def written(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_window_of_any_image(source, tmp_path):
    with open_picture(source(tmp_path)) as picture:
        assert (picture.height, picture.width, picture.geo) == (37, 61, None)
        window = picture.window(Rect(5, 7, 61, 20))
    assert window.flags.c_contiguous
    np.testing.assert_array_equal(window, PHOTO[7:20, 5:61])


def test_grey_pixels_stay_grey():
    np.testing.assert_array_equal(open_picture(PHOTO[..., 0]).window(Rect(0, 1, 2, 3)), PHOTO[1:3, :2, 0])


@pytest.mark.parametrize("factor", [1, 2, 3, 36, 37, 61, 100])
@pytest.mark.parametrize("pixels", [PHOTO, PHOTO[..., 0]], ids=["colour", "grey"])
def test_a_reduced_picture_has_the_means_of_squares(pixels, factor):
    found = open_picture(pixels).reduced(factor)
    assert found.shape[:2] == (-(-37 // factor), -(-61 // factor))
    for y, x in np.ndindex(found.shape[:2]):
        square = pixels[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        np.testing.assert_allclose(found[y, x], square.mean(axis=(0, 1)), atol=0.5 + 1e-9)


def test_a_picture_may_be_longer_than_an_image_of_a_request():
    line = np.zeros((1, 100_000), np.uint8)
    assert open_picture(line).width == 100_000
    assert open_picture(png(line)).window(Rect(99_990, 0, 100_000, 1)).shape == (1, 10, 3)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (20_000, "the image is damaged"),
        (40_000, "40000 x 40000; allowed are 1073741824 pixels and 4194303 along a side; windows of a TIFF"),
    ],
)
def test_pillows_limit_on_pixels_does_not_count(side, message):
    size = struct.pack(">II", side, side)
    cut = png(np.zeros((1, 1, 3), np.uint8))
    header = cut[12:16] + size + cut[24:29]
    with pytest.raises(UnreadableImage, match=message):
        open_picture(cut[:12] + header + struct.pack(">I", zlib.crc32(header)) + cut[33:50])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (PHOTO.astype(np.uint16), InvalidRequest, "pixels are uint8"),
        (np.zeros((4, 4, 4), np.uint8), InvalidRequest, r"got uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), InvalidRequest, "the sides of an image are 1 to 4194303"),
        ([PHOTO], InvalidRequest, "an image is a path, bytes"),
        (b"GIF", UnreadableImage, "not an image"),
        ("no such.png", UnreadableImage, "^no such.png: No such file"),
    ],
    ids=["16 bits", "four channels", "no rows", "list", "no image", "no file"],
)
def test_what_is_no_picture_is_refused(image, error, message):
    with pytest.raises(error, match=message):
        open_picture(image)


def test_an_error_names_the_file_once(tmp_path):
    damaged = written(tmp_path / "damaged.png", png()[:200])
    with pytest.raises(UnreadableImage, match=f"^{damaged}: the image is damaged") as caught:
        open_picture(damaged)
    assert str(caught.value).count("damaged.png") == 1
