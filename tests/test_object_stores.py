"""Images in an object store: S3 as moto serves it on loopback."""

import json
from importlib.util import find_spec
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from moto.server import ThreadedMotoServer

from m2f_cli.main import main
from m2f_client import UnreadableImage
from m2f_client.fake import result_of, stacked
from m2f_client.predict.sources import expand, read

OBJECTS = ["a.jpg", "d/b.png", "d/deep/c.webp", "d/.hidden/x.jpg", "d/.y.jpg", "d/names.txt", "noext", "od[d]1.jpg",
           "q#frame=1.jpg", "q?v=1.jpg", "d 1/ü.jpg", "d/video.mp4", "s/"]  # fmt: skip
IMAGES = ["a.jpg", "d 1/ü.jpg", "d/b.png", "d/deep/c.webp", "od[d]1.jpg", "q#frame=1.jpg", "q?v=1.jpg"]


@pytest.fixture(scope="module", autouse=True)
def store():
    """A bucket whose objects hold their own names."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    address = "http://{}:{}".format(*moto.get_host_and_port())
    settings = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(f"AWS_{name}", value)
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        for name in OBJECTS:
            store.pipe(f"bucket/{name}", name.encode())
        store.pipe("bucket/void/empty.jpg", b"")
        store.pipe("bucket/lists/names.txt", b"\n".join(f"s3://bucket/{name}".encode() for name in IMAGES))
        yield store
    moto.stop()


def addresses(names):
    return [f"s3://bucket/{name}" for name in names]


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("s3://bucket/", [*IMAGES, "void/empty.jpg"]),  # a folder and what is below; nothing hidden, no videos
        ("s3://bucket", [*IMAGES, "void/empty.jpg"]),
        ("s3://bucket/d", ["d/b.png", "d/deep/c.webp"]),
        ("s3://bucket/d/", ["d/b.png", "d/deep/c.webp"]),
        ("s3://bucket/*.jpg", ["a.jpg", "od[d]1.jpg", "q#frame=1.jpg", "q?v=1.jpg"]),
        ("s3://bucket/d*/**/*.*p*", ["d 1/ü.jpg", "d/b.png", "d/deep/c.webp"]),
        ("s3://bucket/**/*.png", ["d/b.png"]),
        ("s3://bucket/d/**", ["d/b.png", "d/deep/c.webp"]),
        ("s3://bucket/noext", ["noext"]),  # an object that is named is tried
        ("s3://bucket/od[d]1.jpg", ["od[d]1.jpg"]),  # an object comes before a pattern
        ("s3://bucket/gone.jpg", ["gone.jpg"]),  # reading it says why
    ],
)
def test_expand(address, names):
    found = expand([address])
    assert found.names == addresses(names)
    assert found.refused == {}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("s3://bucket/gone", "no images there"),
        ("s3://bucket/lists", "no images there"),
        ("s3://bucket/gone*", "no images there"),
        ("s3://none/", "cannot be listed: no such object"),
        ("s3://", "cannot be listed: "),
    ],
)
def test_what_gives_nothing_says_why(address, reason):
    found = expand([address])
    assert found.names == found.unlisted == [address]
    assert found.refused[address].startswith(reason)


def test_other_objects_are_named_and_counted():
    assert expand(["s3://bucket/d/"]).skipped == addresses(["d/names.txt", "d/video.mp4"])


@pytest.mark.parametrize("name", IMAGES)
def test_read(name):
    assert read(f"s3://bucket/{name}", timeout=20) == name.encode()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bucket/gone.jpg", "no such object"),
        ("none/a.jpg", "no such object"),
        ("bucket/void/empty.jpg", "the object is empty"),
        ("bucket/d/video.mp4", "a video is read from a file; download it first"),
    ],
)
def test_what_cannot_be_read_says_why(name, message):
    with pytest.raises(UnreadableImage, match=message):
        read(f"s3://{name}", timeout=20)


def test_an_object_that_is_too_large_is_not_read_to_its_end(store):
    store.pipe("bucket/large", b"x" * ((1 << 20) + 1))
    with pytest.raises(UnreadableImage, match="larger than 1 MiB"):
        read("s3://bucket/large", timeout=20, max_bytes=1 << 20)
    assert len(read("s3://bucket/large", timeout=20, max_bytes=(1 << 20) + 1)) == (1 << 20) + 1
    store.rm("bucket/large")


def test_an_object_costs_one_request(caplog):
    """Of a million objects, each further request costs hours."""
    caplog.set_level("INFO", "werkzeug")
    (name,) = expand(["s3://bucket/a.jpg"]).names
    assert caplog.messages == []
    read(name, timeout=20)
    assert len(caplog.messages) == 1
    assert "GET /bucket/a.jpg" in caplog.messages[0]


def test_a_list_in_a_store():
    assert expand([], lists=["s3://bucket/lists/names.txt"]).names == addresses(IMAGES)
    with pytest.raises(UnreadableImage, match=r"^s3://bucket/gone\.txt: the list cannot be read: no such object"):
        expand([], lists=["s3://bucket/gone.txt"])


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("az", "adlfs")])
def test_a_missing_package_is_said_before_the_first_image(tmp_path, scheme, package):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    (tmp_path / "names").write_text(f"{scheme}://bucket/a.jpg\n")
    named, folder, listed = [f"{scheme}://bucket/a.jpg"], [f"{scheme}://bucket/"], ["--list", str(tmp_path / "names")]
    for command in (["predict", *named], ["predict", *folder], ["predict", *listed], ["bench", *named]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2
        assert f"{scheme}:// needs: pip install 'm2f[{scheme}]'" in done.stderr


def test_shards_of_a_bucket(tmp_path, monkeypatch):
    """The names come from a list in the store; the merged file has each object once."""
    monkeypatch.chdir(tmp_path)
    found = stacked([result_of(np.ones((1, 4, 5)))])
    with serving(lambda _: found, class_names='["cat"]') as fake:
        for index in range(3):
            given = ["predict", "--list", "s3://bucket/lists/names.txt", "--url", fake.url]
            done = CliRunner().invoke(main, [*given, "--shard", f"{index}/3", "--jsonl", f"{index}.jsonl"])
            assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["merge", "0.jsonl", "1.jsonl", "2.jsonl", "--out", "all.json"])
    assert done.exit_code == 0, done.output
    names = [image["file_name"] for image in json.loads(Path("all.json").read_text())["images"]]
    assert sorted(names) == sorted(addresses(IMAGES))
