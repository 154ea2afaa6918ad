import cv2
import numpy as np
import pytest
from pictures import encode, encode_cv2, oriented, photo, png_header_only
from PIL import Image

from m2f.contract import InputError
from m2f.image import decode_image

PHOTO = Image.fromarray(photo())
ALPHA = Image.fromarray(np.random.default_rng(1).integers(0, 256, (61, 83), dtype=np.uint8))
RGBA = Image.merge("RGBA", (*PHOTO.split(), ALPHA))


def bits16(channels):
    return np.random.default_rng(2).integers(0, 1 << 16, (20, 30, channels), dtype=np.uint16).squeeze()


FILES = {
    "jpeg 4:4:4": encode(PHOTO, "jpg", subsampling=0),
    "jpeg 4:2:0": encode(PHOTO, "jpg", subsampling=2, quality=60),
    "jpeg progressive": encode(PHOTO, "jpg", progressive=True),
    "jpeg grey": encode(PHOTO.convert("L"), "jpg"),
    "png": encode(PHOTO),
    "png grey": encode(PHOTO.convert("L")),
    "png black and white": encode(PHOTO.convert("1")),
    "png palette": encode(PHOTO.convert("P")),
    "png palette with transparency": encode(PHOTO.convert("P"), transparency=3),
    "png alpha": encode(RGBA),
    "png grey alpha": encode(RGBA.convert("LA")),
    "png 16-bit grey": encode_cv2(bits16(1)),
    "png 16-bit rgb": encode_cv2(bits16(3)),
    "png 16-bit rgba": encode_cv2(bits16(4)),
    "webp lossy": encode(PHOTO, "webp", quality=80),
    "webp lossless alpha": encode(RGBA, "webp", lossless=True, exact=True),
    **{f"jpeg orientation {o}": oriented(o, "jpg") for o in range(1, 9)},
    **{f"png orientation {o}": oriented(o, "png") for o in range(1, 9)},
}


def decode(data, max_pixels=1 << 26):
    return decode_image(data, max_pixels=max_pixels)


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_mmdetection_reads(name):
    """mmcv reads with cv2.imdecode in colour mode."""
    expected = cv2.imdecode(np.frombuffer(FILES[name], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(decode(FILES[name]), expected)


def test_cmyk_is_converted_as_mmdetection_reads_it_to_one_level():
    data = encode(PHOTO.convert("CMYK"), "jpg")
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_allclose(decode(data).astype(int), expected, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_webp_is_turned_as_its_exif_says_too(orientation):
    """OpenCV ignores it there; a browser does not."""
    turned = decode(oriented(orientation, "webp"))
    plain = decode(encode(PHOTO, "webp"))
    flips = {2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1], 5: plain.transpose(1, 0, 2)}
    quarter = {6: np.rot90(plain, -1), 7: plain[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(plain)}
    np.testing.assert_array_equal(turned, {1: plain, **flips, **quarter}[orientation])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the image is empty"),
        (b"hello", "allowed formats: JPEG, PNG, WebP"),
        (b"\xff\xd8\xff", "allowed formats|damaged"),
        (encode(PHOTO, "gif"), "allowed formats: JPEG, PNG, WebP"),
        (encode(PHOTO, "bmp"), "allowed formats: JPEG, PNG, WebP"),
        (encode(PHOTO, "tiff"), "allowed formats: JPEG, PNG, WebP"),
        (FILES["jpeg 4:2:0"][:-500], "damaged: .*truncated"),
        (FILES["png"][:-500], "damaged: .*truncated"),
        (FILES["webp lossy"][:-100], "damaged"),
        (png_header_only(30000, 30000), "too large: allowed are 67108864 pixels"),
        (png_header_only(10000, 10000), "too large: 10000 x 10000; allowed are 67108864 pixels"),
        (png_header_only(70000, 2), "too large: 70000 x 2; .* and 65535 along a side"),
        (png_header_only(100, 100), "damaged"),
        (png_header_only(0, 5), "damaged|allowed formats"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_file_is_told_what_is_wrong_with_it(data, message):
    with pytest.raises(InputError, match=message):
        decode(data)


def test_the_limit_is_on_pixels_and_inclusive():
    assert decode(FILES["png"], max_pixels=61 * 83).shape == (61, 83, 3)
    with pytest.raises(InputError, match="too large: 83 x 61; allowed are 5062 pixels"):
        decode(FILES["png"], max_pixels=61 * 83 - 1)


@pytest.mark.parametrize("name", ["jpeg 4:2:0", "png", "png palette", "webp lossy"])
def test_damage_anywhere_is_an_error_or_an_image(name):
    rng = np.random.default_rng(3)
    for _ in range(150):
        data = bytearray(FILES[name])
        for position in rng.integers(0, len(data), rng.integers(1, 8)):
            data[position] = rng.integers(0, 256)
        try:
            pixels = decode(bytes(data))
        except InputError:
            continue
        assert pixels.ndim == 3
        assert pixels.dtype == np.uint8
