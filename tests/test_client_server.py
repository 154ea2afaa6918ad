"""The client against the real server, over both protocols."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake_triton import ask
from pictures import picture
from PIL import Image
from pycocotools.coco import COCO

from m2f.contract import OUTPUTS, RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f_cli.main import main
from m2f_client import AsyncClient, Client, InvalidRequest, ModelNotFound, ServerUnavailable, Timeout

pytestmark = pytest.mark.server

EVERYTHING = {"score_threshold": 0.0, "keep_top_k": 20}  # instances in any picture


@pytest.fixture(scope="module", params=["http", "grpc"])
def client(request, server):
    address = server.http_url if request.param == "http" else server.grpc_url
    with Client(f"{request.param}://{address}") as opened:
        yield opened


def same(a, b, names=STRUCTURED_OUTPUTS):
    return all(np.array_equal(a.outputs[name], b.outputs[name]) for name in names)


def test_predict(client):
    result = client.predict(picture(180, 120), outputs=(*STRUCTURED_OUTPUTS, "masks"), **EVERYTHING)
    assert len(result) > 0
    assert result.size == (120, 180)
    assert result.outputs["masks"].shape == (len(result), 120, 180)
    assert np.array_equal(result.areas, result.masks.sum((1, 2)))
    assert [result.mask(i).sum() for i in range(len(result))] == result.areas.tolist()
    assert (np.diff(result.scores) <= 0).all()


def test_class_names(client):
    assert client.class_names
    assert all(isinstance(name, str) for name in client.class_names)


def test_both_protocols_say_the_same(server):
    with Client(f"http://{server.http_url}") as http, Client(f"grpc://{server.grpc_url}") as grpc:
        outputs = STRUCTURED_OUTPUTS + RAW_OUTPUTS
        data = picture(130, 170)
        assert same(
            http.predict(data, outputs=outputs, **EVERYTHING),
            grpc.predict(data, outputs=outputs, **EVERYTHING),
            outputs,
        )
        assert http.class_names == grpc.class_names


def test_batch_equals_single(client):
    images = [picture(w, h, seed=w) for w, h in [(160, 160), (200, 90), (64, 150)]]
    for one, image in zip(client.predict_batch(images, **EVERYTHING), images, strict=True):
        assert same(one, client.predict(image, **EVERYTHING))


def test_threads_share_a_client(client):
    images = [picture(100 + i, 90, seed=i) for i in range(8)]
    alone = [client.predict(image, **EVERYTHING) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: client.predict(image, **EVERYTHING), images))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_threads_come_and_go_without_leaking(client):
    def open_files():
        return len(list(Path("/proc/self/fd").iterdir()))

    def in_a_thread():
        thread = threading.Thread(target=client.predict, args=[picture(40, 40)])
        thread.start()
        thread.join()

    in_a_thread()
    before = open_files()
    for _ in range(20):
        in_a_thread()
    assert open_files() <= before + 4


def test_no_instances(client):
    result = client.predict(picture(160, 120), score_threshold=1.0)
    assert len(result) == 0
    assert result.masks.shape == (0, 120, 160)
    assert result.boxes.shape == (0, 4)
    assert result.to_coco(1) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": b"text"}, None),
        ({"image": b""}, None),
        ({"score_treshold": 0.5}, "score_treshold"),
        ({"score_threshold": 2.0}, "score_threshold"),
        ({"score_threshold": "high"}, "score_threshold"),
        ({"outputs": ("nonsense",)}, "nonsense"),
        ({"triton_enable_empty_final_response": True}, "reserved"),
    ],
)
def test_refusals_arrive_clean_and_the_next_request_works(client, arguments, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        client.predict(**{"image": picture(80, 80), **arguments})
    assert "ensemble" not in str(caught.value)
    assert "StatusCode" not in str(caught.value)
    assert client.predict(picture(80, 80)).size == (80, 80)


def test_unknown_model(client):
    with Client(client.url, model="nonsense") as other, pytest.raises(ModelNotFound, match="nonsense"):
        other.predict(picture(80, 80))


def test_the_wrong_protocol(server):
    with Client(f"http://{server.grpc_url}", timeout=10) as client, pytest.raises(ServerUnavailable, match="gRPC port"):
        client.predict(b"x")
    with Client(f"grpc://{server.http_url}", timeout=10) as client, pytest.raises(ServerUnavailable, match="no gRPC"):
        client.predict(b"x")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_command(server, tmp_path, scheme):
    url = f"{scheme}://{server.http_url if scheme == 'http' else server.grpc_url}"
    exif = Image.Exif()
    exif[0x112] = 6  # stored lying down
    Image.open(io.BytesIO(picture(160, 100))).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "bad.jpg").write_bytes(b"text")
    out = tmp_path / "out"
    paths = [str(tmp_path / name) for name in ("turned.jpg", "bad.jpg")]
    options = ["--url", url, "--score-threshold", "0", "--parameter", "keep_top_k=5", "--out", str(out)]
    ran = CliRunner().invoke(main, ["predict", *paths, *options, "--raw", "--json"])
    assert ran.exit_code == 1
    assert ran.stderr.startswith(f"m2f: {paths[1]}: ")
    assert json.loads(ran.stdout)["images"][0]["width"] == 100
    assert Image.open(out / "turned_overlay.png").size == (100, 160)
    assert set(np.load(out / "turned.npz")) == set(RAW_OUTPUTS)
    truth = COCO(str(out / "instances.json"))
    assert len(truth.imgs) == 1
    assert 0 < len(truth.anns) <= 5
    assert all(truth.annToMask(row).sum() == row["area"] for row in truth.anns.values())


def test_every_way_gives_the_same_bytes(server, image_files):
    """The second time where memory is shared: the first answers come over the wire."""
    ways = {
        f"{kind.__name__} {scheme} {options}": (kind, f"{scheme}://{address}", options)
        for kind in (Client, AsyncClient)
        for scheme, address in (("http", server.http_url), ("grpc", server.grpc_url))
        for options in ({}, {"shared_memory": True, "headers": server.access.headers})
    }
    names = [tensor.name for tensor in OUTPUTS]
    answers = {way: [bytes_of(one) for one in everything(*ways[way], image_files[:2], names)] for way in ways}
    first = answers.pop("Client http {}")
    assert len(first) == 3
    for way, answer in answers.items():
        assert answer == first, way


def everything(kind, url, options, images, names):
    """The result of the first image alone, then of all together."""
    call = {"outputs": names, "score_threshold": 0.0, "keep_top_k": 5}
    calls = [lambda client: client.predict(images[0], **call), lambda client: client.predict_batch(images, **call)]
    *_, single, together = ask(kind, calls * (2 if options else 1), url, **options)
    return [single, *together]


def bytes_of(result):
    return {
        name: (array.dtype.str, array.shape, array.tolist() if array.dtype == object else array.tobytes())
        for name, array in result.outputs.items()
    }


def test_pixels_of_every_kind_are_the_file(client, tmp_path):
    data = picture(150, 110)
    (tmp_path / "a.png").write_bytes(data)
    image = Image.open(io.BytesIO(data))
    expected = client.predict(data, **EVERYTHING)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), np.asarray(image), image, image.convert("RGBA")):
        assert same(client.predict(source, **EVERYTHING), expected)


def test_a_request_may_be_given_less_time(client):
    with pytest.raises(Timeout, match=r"within 0\.001 s"):
        client.predict(picture(400, 400), timeout=0.001)
    assert client.predict(picture(80, 80)).size == (80, 80)
    with pytest.raises(InvalidRequest, match="seconds > 0"):
        client.predict(picture(80, 80), timeout=0)
