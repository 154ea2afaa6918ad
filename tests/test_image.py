import io
import itertools
import struct
import sys
import warnings

import bad_images
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import peak_of
from pictures import chunk, encode, encode_cv2, oriented, photo, png_header_only
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin

from m2f.errors import InputError
from m2f.exif import exif_orientation
from m2f.image import FORMATS, decode_image, decode_jpeg

PHOTO = Image.fromarray(photo())
ALPHA = Image.fromarray(np.random.default_rng(1).integers(0, 256, (61, 83), dtype=np.uint8))
RGBA = Image.merge("RGBA", (*PHOTO.split(), ALPHA))


def bits16(channels):
    return np.random.default_rng(2).integers(0, 1 << 16, (20, 30, channels), dtype=np.uint16).squeeze()


def animated(extension):
    """Two frames; the first is the picture."""
    buffer = io.BytesIO()
    second = Image.fromarray(photo(seed=9))
    PHOTO.save(buffer, extension.upper(), save_all=True, append_images=[second])
    return buffer.getvalue()


def with_adobe_transform(data, transform):
    """Say what the four channels of a CMYK JPEG are: 0 CMYK, 2 YCCK; None takes the marker out."""
    begin = data.index(b"\xff\xee")
    end = begin + 2 + struct.unpack(">H", data[begin + 2 : begin + 4])[0]
    return data[:begin] + (b"" if transform is None else data[begin : end - 1] + bytes([transform])) + data[end:]


INKS = np.random.default_rng(3).integers(0, 256, (61, 83, 4), dtype=np.uint8)
CMYK = encode(Image.fromarray(INKS, "CMYK"), "jpg", quality=95)

FILES = {
    "jpeg 4:4:4": encode(PHOTO, "jpg", subsampling=0),
    "jpeg 4:2:0": encode(PHOTO, "jpg", subsampling=2, quality=60),
    "jpeg 4:2:2": encode(PHOTO, "jpg", subsampling=1),
    "jpeg 4:1:1": encode(PHOTO, "jpg", subsampling="4:1:1"),
    "jpeg progressive": encode(PHOTO, "jpg", progressive=True),
    "jpeg of RGB": encode(PHOTO, "jpg", keep_rgb=True),
    "jpeg of two pictures": animated("mpo"),
    "jpeg with more behind it": encode(PHOTO, "jpg") + b"more" * 50,
    "jpeg cmyk": CMYK,
    "jpeg cmyk without a marker": with_adobe_transform(CMYK, None),
    "jpeg ycck": with_adobe_transform(CMYK, 2),
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
    "png animated": animated("png"),
    "webp lossy": encode(PHOTO, "webp", quality=80),
    "webp animated": animated("webp"),
    "webp lossless alpha": encode(RGBA, "webp", lossless=True, exact=True),
    **{f"jpeg orientation {o}": oriented(o, "jpg") for o in range(1, 9)},
    **{f"png orientation {o}": oriented(o, "png") for o in range(1, 9)},
}


def decode(data, max_pixels=1 << 26):
    return decode_image(data, max_pixels=max_pixels)


def decode_with_pillow(data):
    """The whole image at once, and None for what Pillow refuses."""
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except Exception:
        return None


def by_pillow(data, max_pixels=1 << 26):
    """Decode as where simplejpeg has no wheel."""
    return decode_image(data, max_pixels=max_pixels, jpeg_decoder=None)


needs_simplejpeg = pytest.mark.skipif(decode_jpeg is None, reason="needs simplejpeg")
either_way = pytest.mark.parametrize("decode", [pytest.param(decode, marks=needs_simplejpeg), by_pillow])


@either_way
@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_mmdetection_reads(name, decode):
    """mmcv reads with cv2.imdecode in colour mode."""
    expected = cv2.imdecode(np.frombuffer(FILES[name], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    pixels = decode(FILES[name])
    if decode is by_pillow and ("cmyk" in name or "ycck" in name):
        np.testing.assert_allclose(pixels.astype(int), expected, atol=2)  # Pillow multiplies inks in another order
    else:
        np.testing.assert_array_equal(pixels, expected)


@either_way
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (64, 64), (129, 767), (1080, 1920)])
def test_a_jpeg_of_any_size_is_what_mmdetection_reads(size, options, decode):
    data = encode(photo(*size), "jpg", **options)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_an_image_of_many_strips_is_whole(extension):
    picture = photo(300, 40)
    np.testing.assert_array_equal(decode(encode(picture, extension, lossless=True)), picture)


def test_exif_behind_the_pixels_of_a_png_turns_it():
    data, upright = oriented(6, "png"), photo()
    begin = data.index(b"eXIf") - 4
    end = begin + 12 + struct.unpack(">I", data[begin : begin + 4])[0]
    moved = data[:begin] + data[end:-12] + data[begin:end] + data[-12:]  # IEND is 12 bytes
    np.testing.assert_array_equal(decode(moved), np.rot90(upright, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_webp_is_turned_as_its_exif_says_too(orientation):
    """OpenCV ignores it there; a browser does not."""
    turned = decode(oriented(orientation, "webp"))
    plain = decode(encode(PHOTO, "webp"))
    flips = {2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1], 5: plain.transpose(1, 0, 2)}
    quarter = {6: np.rot90(plain, -1), 7: plain[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(plain)}
    np.testing.assert_array_equal(turned, {1: plain, **flips, **quarter}[orientation])


def with_xmp(extension, exif=None):
    """A file whose XMP says 6, and whose EXIF says something else or nothing."""
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    options = {} if exif is None else {"exif": exif}
    if extension == "png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
        return encode(PHOTO, extension, **options)
    return encode(PHOTO, extension, xmp=xmp, **options)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_xmp_turns_an_image_whose_exif_does_not_say(extension):
    exif = Image.Exif()
    exif[0x10F] = "a maker"
    assert decode(with_xmp(extension)).shape == (83, 61, 3)
    assert decode(with_xmp(extension, exif)).shape == (83, 61, 3)
    exif[0x112] = 1
    assert decode(with_xmp(extension, exif)).shape == (61, 83, 3)


def test_exif_as_text_turns_a_png():
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, "long enough for two lines" * 9
    digits = exif.tobytes().hex()
    text = PngImagePlugin.PngInfo()
    lines = "\n".join(digits[at : at + 71] for at in range(0, len(digits), 71))  # odd, so that lines part a byte
    text.add_text("Raw profile type exif", f"\nexif\n{len(digits) // 2:8}\n{lines}\n", zip=True)
    assert decode(encode(PHOTO, pnginfo=text)).shape == (83, 61, 3)


def test_exif_in_several_segments_is_one():
    data = oriented(6, "jpg")
    begin = data.index(b"Exif\0\0") - 4
    end = begin + 2 + struct.unpack(">H", data[begin + 2 : begin + 4])[0]
    exif = data[begin + 10 : end]
    parts = [b"\xff\xe1" + struct.pack(">H", 8 + len(p)) + b"Exif\0\0" + p for p in (exif[:13], exif[13:])]
    assert decode(data[:begin] + b"".join(parts) + data[end:]).shape == (83, 61, 3)


@st.composite
def exif_blocks(draw):
    """A small block of EXIF, most of them sound, of an orientation and other values of any type."""
    sound = draw(st.sampled_from([True, True, True, False]))
    magic = draw(st.sampled_from([b"II*\0", b"MM\0*"] if sound else [b"MM*\0", b"II\0*", b"II+\0", b"XX*\0"]))
    order = "<" if magic.startswith(b"I") else ">"
    entries = b""
    tags = st.sampled_from([0x10F, 0x112, 0x8769])  # each once: of two Pillow 12 takes the last, Pillow 13 the first
    for tag in draw(st.lists(tags, min_size=1, unique=True)):
        number = draw(st.sampled_from([1, 1, 1, 0, 2, 3, 20]))
        kind = draw(st.sampled_from([3, 4]) | st.integers(0, 17))
        form, values = draw(st.sampled_from([("HH", (6, 0)), ("I", (6,)), ("I", (40,)), ("I", (90,)), ("f", (6.0,))]))
        entries += struct.pack(order + "HHI" + form, tag, kind, number, *values)
    count = len(entries) // 12 + draw(st.sampled_from([0, 0, 0, 1, -1]))
    block = struct.pack(order + "IH", 8 if sound else draw(st.sampled_from([8, 10, 4000])), count) + entries
    block += bytes(draw(st.lists(st.integers(0, 9), max_size=60)))
    return b"Exif\0\0" * draw(st.integers(0, 2)) + magic + block[: len(block) - draw(st.sampled_from([0, 0, 0, 9]))]


@given(exif_blocks())
def test_the_orientation_is_the_one_that_pillow_reads(block):
    exif = Image.Exif()
    with warnings.catch_warnings(record=True) as damages:
        warnings.simplefilter("always")
        try:
            exif.load(block)
            expected = exif.get(0x112)
        except (SyntaxError, struct.error):
            expected = None
    ours = exif_orientation(block)
    if damages and Image.__version__ >= "13":  # it reads on behind a damaged value; Pillow 12 and m2f stop there
        return
    assert (ours is None) == (expected is None)
    if not isinstance(expected, TiffImagePlugin.IFDRational):  # no camera writes a fraction: it turns nothing
        turns = range(2, 9)
        assert (ours if ours in turns else 1) == (expected if expected in turns else 1)


class CountedBytes(bytes):
    """Bytes that count those that are copied out of them."""

    copied = 0

    def __getitem__(self, index):
        part = super().__getitem__(index)
        if isinstance(index, int):
            return part
        CountedBytes.copied += len(part)
        return CountedBytes(part)


def test_exif_of_many_beginnings_is_copied_once():
    CountedBytes.copied = 0
    block = b"Exif\0\0" * 100_000 + b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x112, 3, 1, 6, 0)
    assert exif_orientation(CountedBytes(block)) == 6
    assert CountedBytes.copied < 1000


@pytest.mark.parametrize(
    "name",
    [
        "jpeg exif whose values share a megabyte",
        "jpeg exif in 16,000 segments",
        "jpeg index whose values share 30 kB",
        "jpeg settings of Photoshop, a million of them",
        "png exif whose values share a megabyte",
        "png exif as text whose values share 500 kB",
        "png exif as 50 MB of empty lines",
        "png exif of two million fractions",
        "webp exif whose values share a megabyte",
    ],
)
def test_what_pillow_would_unpack_takes_neither_memory_nor_calls(name):
    """Pillow takes 0.8 to 2.6 GB for them, or millions of calls."""
    data, calls = bad_images.FILES[name].data, itertools.count()
    sys.setprofile(lambda *_: next(calls))
    try:
        decode(data)
    finally:
        sys.setprofile(None)
    assert next(calls) < 1_500_000
    assert peak_of(lambda: decode(data))[1] < len(data) + (128 << 20)


@either_way
@pytest.mark.parametrize("of", ["jpeg 4:2:0", "jpeg progressive"])
def test_each_decoder_gets_a_file_once(of, decode):
    """With 64 KiB at a time, Pillow hands over the same bytes again and again: 64 MiB of fill bytes took a minute."""
    handed = itertools.count()
    data = bad_images.fill_bytes_in_a_scan(8 << 20, of=FILES[of])
    sys.setprofile(lambda _, event, called: next(handed) if event == "c_call" and called.__name__ == "decode" else None)
    try:
        with pytest.raises(InputError, match=r"damaged: .*truncated"):
            decode(data)
    finally:
        sys.setprofile(None)
    assert next(handed) <= 1


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
        (png_header_only(30000, 30000), "too large: 30000 x 30000; allowed are 67108864 pixels"),
        (png_header_only(10000, 10000), "too large: 10000 x 10000; allowed are 67108864 pixels"),
        (png_header_only(70000, 2), "too large: 70000 x 2; .* and 65535 along a side"),
        (png_header_only(100, 100), "damaged"),
        (png_header_only(0, 5), "damaged|allowed formats"),
    ],
)
def test_a_bad_file_is_told_what_is_wrong_with_it(data, message):
    with pytest.raises(InputError, match=message):
        decode(data)


def many_parts(name, part, count):
    """A file with a part that readers skip, `count` times in front of its pixels."""
    data = FILES[name]
    at = 33 if name == "png" else 2
    return data[:at] + part * count + data[at:]


@either_way
@pytest.mark.parametrize(
    ("name", "part"),
    [("png", chunk(b"prVt", b"")), ("jpeg 4:2:0", b"\xff\xe5\0\2"), ("jpeg 4:2:0", b"\xff")],
    ids=["chunks", "segments", "fill bytes"],
)
def test_a_file_of_very_many_parts_is_refused(name, part, decode):
    np.testing.assert_array_equal(decode(many_parts(name, part, 10_000)), decode(FILES[name]))
    with pytest.raises(InputError, match="takes too long to decode: more than 65536 parts"):
        decode(many_parts(name, part, 300_000))


@either_way
def test_a_progressive_jpeg_of_very_many_scans_is_refused(decode):
    data = FILES["jpeg progressive"]
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode(data[:-2] + scan * 50 + data[-2:]).shape == (61, 83, 3)
    with pytest.raises(InputError, match="takes too long to decode: 110 scans; allowed are 64"):
        decode(data[:-2] + scan * 100 + data[-2:])


@either_way
def test_a_jpeg_of_very_many_scans_of_a_component_is_refused(decode):
    np.testing.assert_array_equal(decode(bad_images.grey_scans(3)), np.full((16, 16, 3), 128))
    np.testing.assert_array_equal(decode(bad_images.grey_scans(64)), np.full((16, 16, 3), 128))
    with pytest.raises(InputError, match="takes too long to decode: 65 scans; allowed are 64"):
        decode(bad_images.grey_scans(65))


@either_way
def test_the_larger_a_jpeg_the_fewer_are_its_scans(decode):
    data = FILES["jpeg progressive"]
    scan = data[data.rindex(b"\xff\xda") : -2]
    data = data[:-2] + scan * 11 + data[-2:]
    assert decode(data, max_pixels=61 * 83 + 300).shape == (61, 83, 3)
    with pytest.raises(InputError, match="21 scans; allowed are 20 of 83 x 61 pixels"):
        decode(data, max_pixels=61 * 83)


@either_way
def test_only_what_is_decoded_counts_as_a_scan(decode):
    data, many = FILES["jpeg progressive"], b"\xff\xda\0\x0c" * 1000
    assert decode(data + many).shape == (61, 83, 3)  # as in the film behind a photo
    assert decode(data[:2] + b"\xff\xfe" + struct.pack(">H", len(many) + 2) + many + data[2:]).shape == (61, 83, 3)
    scan = data[data.rindex(b"\xff\xda") : -2]
    hidden = data[:-2] + b"\xff\x02\xff\xff" + scan * 1000  # libjpeg looks for a scan behind a marker that is none
    with pytest.raises(InputError, match="takes too long to decode: 1010 scans"):
        decode(hidden)


@either_way
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["", "behind an end"])
def test_a_jpeg_of_very_many_tables_is_refused(end, decode):
    table = b"\xff\xdb\0\x43" + bytes([0] + [1] * 64)
    assert decode(many_parts("jpeg 4:2:0", table, 900)).shape == (61, 83, 3)
    with pytest.raises(InputError, match="takes too long to decode: more than 65536 bytes of tables"):
        decode(many_parts("jpeg 4:2:0", end + table, 1100))


@needs_simplejpeg
def test_a_jpeg_of_fewer_pixels_than_its_header_says_is_not_filled_up_with_grey():
    data = FILES["jpeg 4:2:0"]
    with pytest.raises(InputError, match="truncated, it has too few pixels"):
        decode(data[:-500] + b"\xff\xd9")


def test_the_limit_is_on_pixels_and_inclusive():
    assert decode(FILES["png"], max_pixels=61 * 83).shape == (61, 83, 3)
    with pytest.raises(InputError, match="too large: 83 x 61; allowed are 5062 pixels"):
        decode(FILES["png"], max_pixels=61 * 83 - 1)


DAMAGED = ["jpeg 4:2:0", "jpeg progressive", "jpeg grey", "png", "webp lossy", "webp lossless alpha", "webp animated"]


@either_way
@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_read_or_refused_as_pillow_does(name, decode):
    rng = np.random.default_rng(3)
    read = 0
    for turn in range(120):
        data = bytearray(FILES[name])
        if turn % 4 == 0:
            del data[rng.integers(2, len(data)) :]
        else:
            within = len(data) if turn % 4 == 1 else min(len(data), 700)  # headers and tables, or anywhere
            for position in rng.integers(0, within, rng.integers(1, 8)):
                data[position] = rng.integers(0, 256)
        expected = decode_with_pillow(bytes(data))
        if expected is None:
            with pytest.raises(InputError):
                decode(bytes(data))
        else:
            try:
                pixels = decode(bytes(data))
            except InputError as error:
                assert "too few pixels" in str(error)  # noqa: PT017 (which Pillow fills up, on half the files)
                continue
            read += 1
            np.testing.assert_array_equal(pixels, expected)
    assert 0 < read < 120
