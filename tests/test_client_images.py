"""What is sent for an image: files as they are, pixels without loss, and a clear no to the rest."""

import array
import base64
import io
import json
import os
import random
import subprocess
import sys
from io import FileIO

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import IMAGES
from fake_server import serving
from memory import peak_of
from mutate import mutated
from pictures import encode, photo
from PIL import Image, features
from tiffs import pages, picture_tags, tiff

from m2f.image import decode_image
from m2f_cli.main import main
from m2f_client import Client, InvalidRequest, UnreadableImage
from m2f_client.fake import result_of, stacked
from m2f_client.images import TRANSCODED_SUFFIXES, encoded, image_tensor

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


@pytest.mark.parametrize("image", [None, 3, [b"x"], {"a": 1}, array.array("B", b"x"), object()])
def test_other_types_are_refused(image):
    with pytest.raises(InvalidRequest, match=f"got {type(image).__name__}"):
        encoded(image)


class Text(str):
    __slots__ = ()


class Named(bytes):
    """A subclass that prints otherwise, and has its own idea of its bytes."""

    def __bytes__(self):
        return b"something else"

    def __str__(self):
        return "a picture"


class Entry:
    """A path whose name is bytes, as of `os.scandir(b".")`."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return os.fsencode(self.path)


PICTURE = b"\xff\xd8 a picture \0\0"


@pytest.mark.parametrize(
    "image",
    [
        np.bytes_(PICTURE),
        Named(PICTURE),
        bytearray(PICTURE),
        memoryview(PICTURE),
        memoryview(bytes(byte for one in PICTURE for byte in (one, 0)))[::2],
        np.array(PICTURE),
        np.array(PICTURE, object),
        np.frombuffer(PICTURE, np.uint8).data,
        io.BytesIO(PICTURE),
    ],
    ids=lambda image: type(image).__name__,
)
def test_bytes_of_every_kind_are_sent_as_they_are(image):
    data = encoded(image)
    assert (type(data), data) == (bytes, PICTURE)


@pytest.mark.parametrize("image", [np.bytes_(PICTURE), Named(PICTURE), bytearray(PICTURE)], ids=type)
def test_bytes_of_every_kind_arrive(image):
    with serving(lambda _: stacked([result_of(np.ones((1, 4, 5)))])) as fake, Client(fake.url) as client:
        client.predict(image)
        client.predict_batch([image])
        assert [asked.inputs["image"][0, 0] for asked in fake.requests] == [PICTURE] * 2


@pytest.mark.parametrize(
    "kind", [str, Text, np.str_, np.array, Entry, lambda path: np.array(path, object), FileIO]
)  # fmt: skip
def test_paths_and_open_files_of_every_kind(tmp_path, kind):
    path = tmp_path / "\udcffa.jpg"
    path.write_bytes(PICTURE)
    image = kind(path if kind is Entry else str(path))
    assert encoded(image) == PICTURE
    if hasattr(image, "close"):
        image.close()
        with pytest.raises(UnreadableImage, match="closed"):
            encoded(image)


def test_open_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    with (
        (tmp_path / "a.jpg").open() as text,
        pytest.raises(InvalidRequest, match="open it with 'rb'; got TextIOWrapper"),
    ):
        encoded(text)
    with (tmp_path / "b").open("wb") as written, pytest.raises(UnreadableImage, match="cannot be read"):
        encoded(written)
    with pytest.raises(UnreadableImage, match=r"at its end: seek\(0\)"):
        encoded(io.BytesIO())
    with open("/dev/zero", "rb") as endless, pytest.raises(UnreadableImage, match="larger than 256 MiB"):  # noqa: PTH123
        encoded(endless)


def test_files_that_are_none_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (("pipe.jpg", r"within 0\.1 s"), ("", "a folder, not a file"), ("gone.jpg", "No such file")):
        with pytest.raises(UnreadableImage, match=f"{tmp_path / name}: .*{reason}"):
            image_tensor([tmp_path / name], timeout=0.1)
    with pytest.raises(UnreadableImage, match=r"s3://a/b\.jpg: this is an address, not a path"):
        encoded("s3://a/b.jpg")


def test_the_timeout_of_a_request_holds_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with Client("http://127.0.0.1:1", timeout=0.1) as client:
        for path in (tmp_path / "pipe.jpg", str(tmp_path / "pipe.jpg")):
            with pytest.raises(UnreadableImage, match=r"the pipe did not end within 0\.1 s"):
                client.predict(path)


def test_a_list_is_for_predict_batch():
    with pytest.raises(InvalidRequest, match="predict_batch"):
        encoded(["a.jpg"])
    with pytest.raises(InvalidRequest, match="list of images; got str"):
        image_tensor("a.jpg")
    for one in (COLOUR, bytearray(b"x"), memoryview(b"x"), np.bytes_(b"x")):
        with pytest.raises(InvalidRequest, match=f"list of images; got {type(one).__name__}"):
            image_tensor(one)


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


# Files of formats that the server does not read

PHOTO = Image.fromarray(photo())
ALPHA = PHOTO.convert("RGBA")
ALPHA.putalpha(77)
DEEP = Image.fromarray(np.random.default_rng(1).integers(0, 1 << 16, (61, 83), dtype=np.uint16))
LZW, BIG = {"compression": "tiff_lzw"}, {"big_tiff": True}
OTHER_FILES = {
    "tiff": encode(PHOTO, "tiff"),
    "tiff lzw": encode(PHOTO, "tiff", **LZW),
    "tiff of 64 bits": encode(PHOTO, "tiff", **BIG),
    "tiff grey": encode(PHOTO.convert("L"), "tiff"),
    "tiff black and white, fax": encode(PHOTO.convert("1"), "tiff", compression="group4"),
    "tiff palette": encode(PHOTO.convert("P"), "tiff", **LZW),
    "tiff 16-bit grey": encode(DEEP, "tiff"),
    "tiff 16-bit grey lzw": encode(DEEP, "tiff", **LZW),
    "tiff cmyk": encode(PHOTO.convert("CMYK"), "tiff"),
    "tiff jpeg": encode(PHOTO, "tiff", compression="jpeg"),
    "tiff with smaller copies": pages(0, 1, 1),
    "bmp": encode(PHOTO, "bmp"),
    "bmp palette": encode(PHOTO.convert("P"), "bmp"),
    "bmp alpha": encode(ALPHA, "bmp"),
    "ppm": encode(PHOTO, "ppm"),
    "pgm": encode(PHOTO.convert("L"), "ppm"),
    "pgm 16-bit": encode(DEEP, "ppm"),
    "pbm": encode(PHOTO.convert("1"), "ppm"),
    "jpeg 2000": encode(PHOTO, "jpeg2000"),
    "jpeg 2000 16-bit": encode(DEEP, "jpeg2000"),
}
AS_PILLOW = {  # what OpenCV does not read, or blends
    "tiff alpha": encode(ALPHA, "tiff"),
    "gif": encode(PHOTO, "gif"),
    "gif of two pictures": encode(PHOTO, "gif", save_all=True, append_images=[PHOTO.rotate(180)]),
    "sgi": encode(PHOTO, "sgi"),
    "qoi": encode(PHOTO, "qoi"),
    "pcx": encode(PHOTO, "pcx"),
    "tga": encode(PHOTO, "tga"),
    "tga that begins at its bottom": encode(PHOTO, "tga", orientation=1, compression="tga_rle"),
    "avif": encode(PHOTO, "avif") if features.check("avif") else None,
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_of_another_format_has_the_pixels_that_mmdetection_reads(name):
    """mmcv reads with cv2.imdecode in colour mode."""
    expected = cv2.imdecode(np.frombuffer(OTHER_FILES[name], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.array_equal(seen_by_the_server(encoded(OTHER_FILES[name])), expected)


@pytest.mark.parametrize("name", [name for name, data in AS_PILLOW.items() if data])
def test_a_file_of_another_format_has_the_pixels_that_pillow_reads(name):
    expected = np.asarray(Image.open(io.BytesIO(AS_PILLOW[name])).convert("RGB"))
    assert np.array_equal(seen_by_the_server(encoded(AS_PILLOW[name])), expected)


@pytest.mark.parametrize("options", [{}, LZW], ids=["", "lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_upright(orientation, options):
    exif = Image.Exif()
    exif[0x112] = orientation
    tiff = encode(PHOTO, "tiff", exif=exif, **options)
    assert np.array_equal(seen_by_the_server(encoded(tiff)), seen_by_the_server(encode(PHOTO, "png", exif=exif)))


@pytest.mark.parametrize("suffix", TRANSCODED_SUFFIXES)
def test_every_suffix_is_one_that_pillow_knows(suffix):
    """A file of each suffix is sent as PNG, whatever its name's case."""
    known = {**Image.registered_extensions(), ".pnm": "PPM", ".dib": "BMP"}
    assert known[suffix] in ("AVIF", "BMP", "GIF", "JPEG2000", "PCX", "PPM", "QOI", "SGI", "TGA", "TIFF")


def test_a_path_is_read_by_its_content(tmp_path):
    (tmp_path / "a.jpg").write_bytes(OTHER_FILES["bmp"])
    (tmp_path / "a.tif").write_bytes(encode(PHOTO, "png"))
    assert np.array_equal(decoded(encoded(tmp_path / "a.jpg")), np.asarray(PHOTO))
    assert encoded(tmp_path / "a.tif") == encode(PHOTO, "png")


@pytest.mark.parametrize("data", [b"", b"P5", b"BM"[:1], b"GIF90a", b"text", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"])
def test_a_file_of_an_unknown_format_is_left_to_the_server(data):
    assert encoded(data) == data


def many_pages(count):
    return tiff(*[picture_tags()] * count)


EXIF_IN_A_CIRCLE = tiff(picture_tags((34665, 4, 1, 72)), last=72)  # its EXIF and its next picture are itself
SHARED = tiff([*picture_tags(), *((tag, 1, 1 << 20, 8) for tag in range(1000, 1200))], tail=bytes(1 << 20))
NUMBERS = tiff(picture_tags((34736, 12, 2 << 20, 8)), tail=bytes(16 << 20))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(Image.new("F", (9, 9)), "tiff"), "values of 32 bits or with a sign .Pillow's mode 'F'.* allowed are 8"),
        (encode(Image.new("I", (9, 9)), "tiff"), "Pillow's mode 'I'"),
        (pages(None, None, None), "the TIFF has 3 pictures; allowed is 1: split the file"),
        (pages(0, 0, 1, big_tiff=True), "the TIFF has 2 pictures"),
        (many_pages(7000), "takes too long to decode: more than 65536 parts"),
        (NUMBERS, "more than 1048576 numbers in its tags"),
        (tiff(picture_tags(**{"256": 60_000, "257": 60_000})), "too large"),
        (tiff(picture_tags(**{"256": 70_000, "257": 1})), "too large: 70000 x 1; .* and 65535 along a side"),
        (OTHER_FILES["tiff"][:9], "damaged"),
        (OTHER_FILES["tiff lzw"][:-300], "damaged"),
        (OTHER_FILES["bmp"][:-300], "the image is damaged: .*truncated"),
        (OTHER_FILES["ppm"][:-300], "damaged"),
        (b"P6\n99999 99999\n255\n", "too large"),
        (b"GIF89a\xff\xff\xff\xff\xf7\0\0", "a kind of GIF that this Pillow does not read"),
        (b"BM" + bytes(99), "damaged"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_bad_file_of_another_format_says_why(data, message):
    def refused():
        with pytest.raises(UnreadableImage, match=message):
            encoded(data)

    assert peak_of(refused)[1] < 4 * len(data) + (64 << 20)


@pytest.mark.filterwarnings("ignore")
def test_values_on_top_of_each_other_are_refused_by_name_or_never_read():
    """Pillow 13 copies only the values that it needs; older releases copy all."""

    def read():
        try:
            return encoded(SHARED)
        except UnreadableImage as error:
            return str(error)

    result, peak = peak_of(read)
    assert isinstance(result, bytes) or "its parts lie on top of each other" in result
    assert peak < 4 * len(SHARED) + (64 << 20)


@pytest.mark.filterwarnings("ignore")
def test_a_tiff_that_points_at_itself():
    assert seen_by_the_server(encoded(EXIF_IN_A_CIRCLE)).shape == (8, 8, 3)


@pytest.mark.parametrize("form", [str, str.encode])
def test_a_data_url_is_the_file_in_it(form):
    png = encode(PHOTO, "png")
    assert encoded(form(f"data:image/png;base64,{base64.b64encode(png).decode()}")) == png
    tiff = base64.b64encode(OTHER_FILES["tiff"]).decode()
    assert np.array_equal(decoded(encoded(form(f"DATA:image/tiff;base64,{tiff}"))), np.asarray(PHOTO))
    with pytest.raises(UnreadableImage, match=r"the data URL has no ';base64' before its comma"):
        encoded(form("data:image/png,x"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [300, pytest.param(50_000, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
def test_a_damaged_file_of_another_format_is_read_or_refused(count):
    files = [data for data in (*OTHER_FILES.values(), *AS_PILLOW.values(), EXIF_IN_A_CIRCLE, pages(0, 0)) if data]
    rng, refused = random.Random(count), 0
    for _ in range(count):
        try:
            encoded(mutated(rng, rng.choice(files), files))
        except UnreadableImage:
            refused += 1
    assert 0.3 * count < refused < 0.9 * count


# Through the command, and through the real server


def test_the_command_takes_a_folder_of_other_formats(tmp_path, monkeypatch):
    """Upright for the server, in the document and in the drawing; a file that is refused is named."""
    exif = Image.Exif()
    exif[0x112] = 6
    (tmp_path / "in").mkdir()
    files = {"a.TIF": encode(PHOTO, "tiff", exif=exif), "b.bmp": OTHER_FILES["bmp"], "c.tiff": pages(0, 0)}
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    seen = []

    def answer(request):
        seen.append(decoded(request.inputs["image"][0, 0]))
        return stacked([result_of(np.ones((1, *seen[-1].shape[:2]), np.uint8))])

    with serving(answer) as fake:
        ran = CliRunner().invoke(main, ["predict", "in", "--out", "out", "--concurrency", "1", "--url", fake.url])
    assert (ran.exit_code, "m2f: in/c.tiff: the TIFF has 2 pictures; allowed is 1" in ran.stderr) == (1, True)
    assert np.array_equal(seen[0], np.rot90(np.asarray(PHOTO), -1))
    assert np.array_equal(seen[1], np.asarray(PHOTO))
    images = json.loads((tmp_path / "out/instances.json").read_text())["images"]
    assert [(image["width"], image["height"]) for image in images] == [(61, 83), (83, 61)]
    assert Image.open("out/a_overlay.png").size == (61, 83)


@pytest.mark.server
def test_the_server_answers_a_tiff_as_a_png(server, tmp_path):
    picture = Image.open(IMAGES[-1]).convert("RGB")
    for suffix in ("png", "tiff", "bmp", "ppm"):
        picture.save(tmp_path / f"a.{suffix}")
    with Client(f"grpc://{server.grpc_url}") as client:
        results = [client.predict(tmp_path / f"a.{suffix}") for suffix in ("png", "tiff", "bmp", "ppm")]
        batch = client.predict_batch([tmp_path / "a.tiff", (tmp_path / "a.bmp").read_bytes()])
    assert len(results[0]) > 0
    for result in (*results, *batch):
        assert np.array_equal(result.boxes, results[0].boxes)
        assert result.outputs["rle"].tolist() == results[0].outputs["rle"].tolist()
