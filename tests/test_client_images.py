"""What is sent for an image: files as they are, pixels without loss, and a clear no to the rest."""

import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from m2f.image import decode_image
from m2f_client import InvalidRequest, UnreadableImage
from m2f_client.images import encoded, image_tensor

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (13, 21, 3), np.uint8)
GREY = RNG.integers(0, 256, (13, 21), np.uint8)


def decoded(png):
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)))


def seen_by_the_server(file):
    """The pixels of a file as the server reads them."""
    return decode_image(file, max_pixels=10**6)


@pytest.mark.parametrize(
    "pixels",
    [
        COLOUR,
        GREY,
        COLOUR[:1, :1],
        COLOUR[:, ::-1],  # views
        COLOUR[::2, ::3],
        np.asfortranarray(COLOUR),
        COLOUR[..., ::-1],
        GREY.T,
        np.broadcast_to(np.uint8(7), (4, 5)),  # read-only, strides 0
    ],
)
def test_pixels_arrive_as_they_are(pixels):
    before = pixels.copy()
    assert np.array_equal(decoded(encoded(pixels)), pixels)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(
    "pixels",
    [
        COLOUR.astype(np.float32),
        COLOUR.astype(np.int32),
        COLOUR > 3,
        COLOUR[None],
        COLOUR[..., :1],
        np.dstack([COLOUR, GREY]),  # alpha
        COLOUR[0, 0],
        np.moveaxis(COLOUR, 2, 0),
    ],
)
def test_pixels_of_another_form_are_refused_by_name(pixels):
    with pytest.raises(InvalidRequest) as caught:
        encoded(pixels)
    assert f"got {pixels.dtype} {list(pixels.shape)}" in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0), (70_000, 1)])
def test_sides_out_of_range(shape):
    with pytest.raises(InvalidRequest, match="1 to 65535"):
        encoded(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "PA"])
def test_a_pillow_image_is_what_the_server_reads_of_its_png(mode):
    image = Image.fromarray(np.dstack([COLOUR, GREY])).convert(mode if mode != "PA" else "P")
    file = io.BytesIO()
    image.save(file, "PNG")
    image = image.convert(mode)
    assert np.array_equal(seen_by_the_server(encoded(image)), seen_by_the_server(file.getvalue()))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_other_pillow_modes_become_rgb(mode):
    image = Image.fromarray(COLOUR).convert(mode)
    assert np.array_equal(decoded(encoded(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_deep_pillow_images_are_refused(mode):
    with pytest.raises(InvalidRequest, match=f"mode '{mode}'"):
        encoded(Image.new(mode, (4, 4)))


def test_a_pillow_image_is_sent_as_pillow_shows_it():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(COLOUR).save(file, "PNG", exif=exif)
    assert np.array_equal(seen_by_the_server(encoded(Image.open(file))), COLOUR)


def test_a_damaged_file_in_a_pillow_image():
    file = io.BytesIO()
    Image.fromarray(np.tile(COLOUR, (20, 20, 1))).save(file, "JPEG")
    with pytest.raises(UnreadableImage, match="Pillow"):
        encoded(Image.open(io.BytesIO(file.getvalue()[:-4000])))


@pytest.mark.parametrize("image", [None, 3, [b"x"], bytearray(b"x"), {"a": 1}])
def test_other_types_are_refused(image):
    with pytest.raises(InvalidRequest, match=f"got {type(image).__name__}"):
        encoded(image)


def test_a_list_is_for_predict_batch():
    with pytest.raises(InvalidRequest, match="predict_batch"):
        encoded(["a.jpg"])
    with pytest.raises(InvalidRequest, match="list of images; got str"):
        image_tensor("a.jpg")
    with pytest.raises(InvalidRequest, match="list of images; got ndarray"):
        image_tensor(COLOUR)


def test_a_path_that_no_system_has():
    with pytest.raises(UnreadableImage, match="null"):
        encoded("a\0b")


def test_a_batch_of_all_kinds(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"jpeg")
    tensor = image_tensor((tmp_path / "a.jpg", b"bytes", COLOUR, Image.fromarray(GREY)))
    assert tensor.shape == (4, 1)
    assert tensor[:2, 0].tolist() == [b"jpeg", b"bytes"]
    assert np.array_equal(decoded(tensor[2, 0]), COLOUR)
    assert np.array_equal(decoded(tensor[3, 0]), GREY)


def test_the_encoder_agrees_with_pillow_on_large_pictures():
    pixels = cv2.resize(COLOUR, (640, 480))
    assert np.array_equal(decoded(encoded(pixels)), pixels)


def test_importing_the_client_needs_neither_pillow_nor_opencv():
    code = "import sys, m2f_client; sys.exit(any(name in sys.modules for name in ('PIL', 'cv2', 'tritonclient')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
