"""Data URLs: what is read, what is refused and why, and the same answer as with the bytes, through plain JSON."""

import base64
import json
import ssl
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import IMAGES
from memory import peak_of

from m2f.data_url import decode_data_url, is_data_url
from m2f.errors import InputError
from m2f.preprocess import Preprocessing

FILE = IMAGES[0].read_bytes()
TEXT = base64.b64encode(FILE)
LINES = base64.encodebytes(FILE)  # 76 characters a line
URL = b"data:image/jpeg;base64," + TEXT
PREPARE = Preprocessing(scale=(256, 256))


@pytest.mark.parametrize(
    "url",
    [
        URL,
        b"data:image/jpeg;base64," + LINES,
        b"data:image/jpeg;base64,\r\n" + LINES.replace(b"\n", b"\r\n"),
        b"data:image/jpeg;base64, " + TEXT + b"\t\n",
        b"DATA:IMAGE/JPEG;BASE64," + TEXT,
        b"Data:image/png;base64," + TEXT,  # the content decides
        b"data:image/jpg;base64," + TEXT,
        b"data:image/jpeg;charset=utf-8;base64," + TEXT,
        b"data:image/jpeg;name=a%2Cb.jpg;base64," + TEXT,
        b"data:image/jpeg; base64," + TEXT,
        b"data:application/octet-stream;base64," + TEXT,
        b"\n data:image/jpeg;base64," + TEXT,
        b"data:image/jpeg;base64," + TEXT.rstrip(b"="),
    ],
)
def test_a_data_url_is_the_file_in_it(url):
    assert is_data_url(url)
    assert decode_data_url(url, max_bytes=len(FILE)) == FILE


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_the_padding_may_be_missing(cut):
    file = FILE[: len(FILE) - len(FILE) % 3 - cut]
    for text in (base64.b64encode(file), base64.b64encode(file).rstrip(b"=")):
        assert decode_data_url(b"data:image/png;base64," + text, max_bytes=1 << 20) == file


FORM = "allowed: 'data:image/jpeg;base64,...', with image/png or image/webp likewise"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (b"data:", f"has no comma in its first 1024 bytes; {FORM}"),
        (b"data:image/jpeg;base64" + TEXT, "has no comma"),
        (b"data:image/jpeg;base64," + b"!" + TEXT, "has '!' as character 0; allowed are A-Z, a-z, 0-9, '+', '/'"),
        (b"data:image/jpeg;base64," + TEXT[:99] + b"\xc3\xa9" + TEXT[99:], "as character 99;"),
        (b"data:image/jpeg;base64," + base64.urlsafe_b64encode(b"\xff" * 9), "has '_' as character 0"),
        (b"data:image/jpeg;base64," + TEXT.replace(b"/", b"%2F"), "has '%' as character"),
        (b"data:image/jpeg;base64," + TEXT[:9], "base64 of the data URL is damaged"),
        (b"data:image/jpeg;base64,QQ==" + TEXT, "base64 of the data URL is damaged"),
        (b"data:image/jpeg;base64,====", "base64 of the data URL is damaged"),
        (b"data:image/jpeg," + TEXT, f"has no ';base64' before its comma; {FORM}"),
        (b"data:image/jpeg,%FF%D8%FF", "has no ';base64'"),
        (b"data:text/plain;base64," + TEXT, f"has the media type 'text/plain'; {FORM}"),
        (b"data:;base64," + TEXT, "has the media type ''"),
        (b"data:" + b"x" * 1000 + b";base64," + TEXT, "has the media type 'xxx"),
        (b"data:application/pdf;base64," + TEXT, "has the media type 'application/pdf'"),
        (b"data:image/jpeg;base64,", "the image is empty"),
        (b"data:image/jpeg;base64, \n ", "the image is empty"),
        (b"data:image/gif;base64," + base64.b64encode(b"GIF89a" + bytes(99)), "allowed formats: JPEG, PNG, WebP"),
        (b"data:image/jpeg;base64," + base64.b64encode(URL), "allowed formats: JPEG, PNG, WebP"),  # once, not twice
        (b"data:image/jpeg;base64," + TEXT[:400], "the image is damaged"),
        (b"data:image/png;base64," + base64.b64encode(bytes((1 << 26) + 1)), "67108865 bytes in its data URL; allowed"),
        (TEXT, "allowed formats: JPEG, PNG, WebP. It is base64: put 'data:image/jpeg;base64,' before it"),
        (b"database", "allowed formats: JPEG, PNG, WebP"),
    ],
)
def test_what_is_wrong_with_a_data_url_is_said(url, message):
    with pytest.raises(InputError) as refused:
        PREPARE([url])
    assert message in str(refused.value)
    assert len(str(refused.value)) < 300


def test_the_limit_is_on_the_file_and_inclusive():
    for text in (TEXT, TEXT.rstrip(b"="), LINES):
        url = b"data:image/jpeg;base64," + text
        assert Preprocessing(scale=(256, 256), max_bytes=len(FILE))([url])[0].shape[0] == 1
        with pytest.raises(InputError, match=f"{len(FILE)} bytes in its data URL; allowed are {len(FILE) - 1}"):
            Preprocessing(scale=(256, 256), max_bytes=len(FILE) - 1)([url])


def test_a_data_url_takes_little_memory():
    url = b"data:image/png;base64," + b"A" * (32 << 20)
    assert peak_of(lambda: decode_data_url(url, max_bytes=1 << 26))[1] < 4 * len(url)


def test_images_and_data_urls_may_be_mixed_in_a_batch():
    batch, _, sizes = PREPARE([FILE, URL])
    assert np.array_equal(batch[0], batch[1])
    assert np.array_equal(sizes[0], sizes[1])
    with pytest.raises(InputError, match="image 1 of 2: the data URL has no ';base64'"):
        PREPARE([FILE, b"data:image/jpeg,x"])


# Plain JSON through the real server


OUTPUTS = ("scores", "labels", "boxes", "areas", "rle", "size")


def post(address, *images, outputs=OUTPUTS, context=None, **parameters):
    """Ask as any program asks that can send JSON; returns the outputs by name, or the error."""
    body = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(images), 1], "data": [*images]}],
        "outputs": [{"name": name} for name in outputs],
        "parameters": parameters,
    }
    url = f"{address}/v2/models/mask2former/infer"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


@pytest.mark.server
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_plain_json_gets_the_answer_of_the_bytes(server, path):
    from kserve import connect, image_input

    kind = {".jpg": "jpeg"}.get(path.suffix, path.suffix[1:])
    url = f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    answer = post(f"http://{server.http_url}", url, score_threshold=0.3)
    triton = connect(server, "grpc")
    expected = triton.infer("mask2former", image_input(path.read_bytes()), tuple(answer), score_threshold=0.3)
    triton.client.close()
    assert len(expected["scores"][0]) > 0
    for name, array in expected.items():
        wanted = [row.decode() for row in array.reshape(-1)] if name == "rle" else array.reshape(-1).tolist()
        assert np.array_equal(answer[name], wanted), name


@pytest.mark.server
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((FILE[:9].hex(),), "allowed formats: JPEG, PNG, WebP"),
        ((TEXT.decode(),), "It is base64: put 'data:image/jpeg;base64,' before it"),
        (("data:text/plain;base64,aGVsbG8=",), "has the media type 'text/plain'"),
        ((URL.decode(), "data:image/jpeg,x"), "image 1 of 2: the data URL has no ';base64'"),
        (("data:image/jpeg;base64,\u00e9",), "as character 0; allowed are A-Z"),
    ],
)
def test_plain_json_is_told_what_is_wrong(server, images, message):
    status, error = post(f"http://{server.http_url}", *images)
    assert (status, message in error) == (400, True), error


@pytest.mark.more
@pytest.mark.server
def test_plain_json_passes_the_front(server, make_front, certificates):
    """The front looks at the structure of the JSON, not at what is in its strings; 48 MiB are 64 in base64."""
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    address = f"https://{make_front()}"
    direct = post(f"http://{server.http_url}", URL.decode())
    assert post(address, URL.decode(), context=context) == direct
    large = base64.b64encode(FILE + bytes((47 << 20) - len(FILE))).decode()
    assert post(address, f"data:image/jpeg;base64,{large}", context=context) == direct
    status, error = post(address, f"data:image/jpeg;base64,{large}{large[: 1 << 22]}", context=context)
    assert (status, error) == (413, "the body is too large")
