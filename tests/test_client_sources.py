"""Where images come from."""

import contextlib
import errno
import http.server
import io
import os
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from http_proxy import http_proxy, no_proxies

from m2f_client import InvalidRequest, UnreadableImage
from m2f_client.images import IMAGE_SUFFIXES
from m2f_client.predict.shards import Shard
from m2f_client.predict.sources import Sources, expand, read


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("p/b.jpg", "p/A.PNG", "p/deep/c.webp", "p/.hidden.jpg", "p/.git/x.png", "p/notes.txt", "p/v.mp4",
                 "p/out/a_overlay.png", "odd[1].jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "empty").mkdir()
    return tmp_path


ALL = ["p/A.PNG", "p/b.jpg", "p/deep/c.webp", "p/out/a_overlay.png"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["p"], ALL),  # images in a folder and below: no videos, no other files, nothing hidden
        (["p/", "./p"], ALL),  # each once
        (["p/b.jpg", "p"], ["p/b.jpg", "p/A.PNG", "p/deep/c.webp", "p/out/a_overlay.png"]),
        (["p/*"], ["p/A.PNG", "p/b.jpg", "p/v.mp4"]),  # a pattern finds videos too
        (["p/**/*.webp"], ["p/deep/c.webp"]),
        (["p/notes.txt"], ["p/notes.txt"]),  # a file that is named is tried
        (["odd[1].jpg"], ["odd[1].jpg"]),  # a file comes before a pattern
        (["-", "http://h/a.jpg", "HTTPS://h/b"], ["-", "http://h/a.jpg", "HTTPS://h/b"]),
        (["empty", "no*.jpg", "gone.jpg"], ["empty", "no*.jpg", "gone.jpg"]),  # reading them says why
    ],
)
def test_expand(arguments, names):
    assert expand(arguments, out=None).names == names


def test_what_is_written_is_not_read(folder):
    assert expand(["p"], out=folder / "p/out").names == ALL[:-1]
    with pytest.raises(InvalidRequest, match="choose another folder"):
        expand(["p"], out=folder / "empty/../p")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "a folder, not a file"),
        ("gone.jpg", "No such file or directory"),
        ("p/b.jpg/x", "Not a directory"),
        ("a\0b", "null"),
        ("http://127.0.0.1:1/a.jpg", "cannot be downloaded: .*refused"),
        ("http://", "cannot be downloaded"),
        ("http://h:port/", "port"),
    ],
)
def test_what_cannot_be_read_says_why(name, message):
    with pytest.raises(UnreadableImage, match=message):
        read(name, timeout=5)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("empty", "no images in this folder"),
        ("no*.jpg", "nothing matches"),
        ("p/*.txt", "no image or video matches"),
        ("ftp://host/a.jpg", "ftp:// is not read; allowed are http://, https://, s3://, gs://, az:// and paths"),
        ("rtsp://camera/1.mp4", "rtsp:// is not read"),
        ("FILE:///a.jpg", "FILE:// is not read"),
    ],
)
def test_what_gives_nothing_says_why(argument, reason):
    found = expand([argument], out=None)
    assert found.names == [argument]
    assert found.refused[argument].startswith(reason)


def test_a_list_gives_its_names_as_they_are(folder):
    names = ["p/b.jpg", "./p//c.jpg", "http://h/a.jpg", "p", "*.jpg", "#1.jpg", " a b.jpg", "ftp://h/a", "ä.jpg"]
    (folder / "names").write_text("\r\n\n".join(names))
    (folder / "more").write_bytes(b"\xff.jpg\np/b.jpg\n")
    found = expand(["p/A.PNG"], lists=["names", "more"])
    assert found.names == ["p/A.PNG", "p/b.jpg", "p/c.jpg", *names[2:], os.fsdecode(b"\xff.jpg")]
    assert found.refused.keys() == {"ftp://h/a"}
    assert found.unlisted == []


def test_a_list_may_be_a_pipe_and_is_not_held_in_memory(folder):
    os.mkfifo(folder / "pipe")

    def write():
        with (folder / "pipe").open("w") as stream:
            stream.writelines(f"{number}.jpg\n" for number in range(1000))

    threading.Thread(target=write, daemon=True).start()
    found = expand([], lists=["pipe"], shard=Shard(0, 4))
    assert found.listing.names == 1000
    assert 200 < len(found.names) < 300


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_a_list_that_cannot_be_read_is_refused_by_name(folder, name):  # noqa: ARG001 (makes the folder `empty`)
    with pytest.raises(UnreadableImage, match=f"{name}: the list cannot be read: (No such file|Is a directory)"):
        expand([], lists=[name])


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_folder_gives_every_type_that_can_be_sent(tmp_path, suffix):
    for name in (f"a{suffix}", f"B{suffix.upper()}"):
        (tmp_path / name).touch()
    found = expand([str(tmp_path)], out=None)
    assert found.names == [str(tmp_path / f"B{suffix.upper()}"), str(tmp_path / f"a{suffix}")]
    assert (found.refused, found.skipped, found.note()) == ({}, [], None)


@pytest.mark.parametrize("name", ["a.HEIC", "a.cr2", "a.svg"])
def test_images_of_other_types_are_tried_so_that_they_fail_by_name(tmp_path, name):
    (tmp_path / name).touch()
    assert expand([str(tmp_path)], out=None).names == [str(tmp_path / name)]


@pytest.mark.parametrize("argument", ["p", "p/*"])
def test_other_files_are_named_and_counted(tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    for name in ("a.jpg", *(f"{number}.txt" for number in range(6)), "Makefile", ".hidden"):
        (tmp_path / "p" / name).touch()
    found = expand([argument, argument], out=None)
    assert found.names == ["p/a.jpg"]
    assert len(found.skipped) == 7
    assert found.note() == (
        "skipped 7 files that are not images: p/0.txt, p/1.txt, p/2.txt, p/3.txt, p/4.txt and 2 more"
    )


def test_one_other_file():
    assert Sources(skipped=["a.txt"]).note() == "skipped 1 file that is not an image: a.txt"


@pytest.fixture
def odd_folder(tmp_path, monkeypatch):
    """Everything that can have the name of an image, and folders that lead in a circle."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p/folder.jpg").mkdir(parents=True)
    for name in ("a.jpg", "folder.jpg/inner.png", b"\xff.jpg", "x" * 251 + ".jpg"):
        (tmp_path / "p" / os.fsdecode(name)).touch()
    os.mkfifo("p/pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("p/socket.jpg")
    for name, target in (
        ("zero.jpg", "/dev/zero"),
        ("gone.jpg", "nowhere"),
        ("loop.jpg", "loop.jpg"),
        ("link.jpg", "a.jpg"),
        ("up", ".."),
        ("here", "."),
    ):
        (tmp_path / "p" / name).symlink_to(target)
    return tmp_path


SPECIAL = {
    "p/pipe.jpg": "a pipe, not a file",
    "p/socket.jpg": "a socket, not a file",
    "p/zero.jpg": "a device, not a file",
}
FILES = {"p/a.jpg", "p/link.jpg", "p/gone.jpg", "p/loop.jpg", "p/\udcff.jpg", f"p/{'x' * 251}.jpg"}


@pytest.mark.usefixtures("odd_folder")
def test_what_is_not_a_file_is_refused_by_name():
    found = expand(["p"], out=None)
    assert set(found.names) == FILES | set(SPECIAL) | {"p/folder.jpg/inner.png"}
    assert found.refused == SPECIAL
    assert found.skipped == ["p/here (a link to a folder)", "p/up (a link to a folder)"]


@pytest.mark.usefixtures("odd_folder")
@pytest.mark.parametrize("pattern", ["p/**/*.jpg", "**/*.jpg", "./p/**", "**", "**/" * 50 + "*.jpg"])
def test_patterns_do_not_go_in_circles(pattern):
    found = expand([pattern], out=None)
    inner = {"p/folder.jpg/inner.png"} if pattern.endswith("**") else set()
    assert set(found.names) == FILES | set(SPECIAL) | inner
    assert found.refused == SPECIAL


@pytest.mark.usefixtures("odd_folder")
def test_a_link_to_a_folder_that_is_named_is_read():
    assert "p/here/a.jpg" in expand(["p/here"], out=None).names


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_as_a_user(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    found = expand([str(tmp_path)], out=None)
    assert found.refused == {str(tmp_path / "locked"): "Permission denied"}


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    """As that test, for root: a folder goes while it is read, or a disk fails."""
    (tmp_path / "a.jpg").touch()
    (tmp_path / "bad").mkdir()
    scandir = os.scandir

    def fails(path):
        if str(path).endswith("bad"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fails)
    found = expand([str(tmp_path)], out=None)
    assert found.names == [str(tmp_path / "a.jpg"), str(tmp_path / "bad")]
    assert found.refused == {str(tmp_path / "bad"): "Input/output error"}


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".jpg", "x" * 300, "x" * 5000, "a/" * 3000, "data:image/png;base64," + "A" * 9000]
)
def test_a_name_that_is_too_long(name):
    (found,) = expand([name], out=None).names
    with pytest.raises(UnreadableImage, match="File name too long"):
        read(found, timeout=1)


def test_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"image")))
    assert read("-", timeout=1) == b"image"


def test_stdin_that_is_closed_or_has_no_end(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(1 << 21))))
    with pytest.raises(UnreadableImage, match="larger than 1 MiB"):
        read("-", timeout=1, max_bytes=1 << 20)
    sys.stdin.close()
    with pytest.raises(UnreadableImage, match="closed"):
        read("-", timeout=1)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UnreadableImage, match="standard input is closed"):
        read("-", timeout=1)


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.jpg")
            self.end_headers()
        elif self.path == "/drips":
            try:
                for letter in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000:
                    self.wfile.write(bytes([letter]))
                    time.sleep(0.01)
            except OSError:
                pass
        elif self.path == "/to-another":
            self.send_response(302)
            self.send_header("Location", "http://pictures.example/a.jpg")
            self.end_headers()
        elif self.path.split("?")[0] in ("/a.jpg", "/slow", "/large", "/b%C3%BCcher/my%20photo.jpg"):
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range({"/slow": 20, "/large": 40}.get(self.path, 1)):
                    self.wfile.write(b"data" if self.path != "/large" else bytes(1 << 16))
                    time.sleep(0.1 if self.path == "/slow" else 0)
            except OSError:
                pass  # the client has heard enough
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"data")
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{server.server_port}", address=f"127.0.0.1:{server.server_port}", asked=server.asked
        )
        server.shutdown()
        thread.join()


def test_download(site):
    assert read(f"{site.url}/a.jpg", timeout=5) == b"data"
    assert read(f"{site.url}/moved", timeout=5) == b"data"
    assert read(f"{site.url}/bücher/my photo.jpg?größe=1#top", timeout=5) == b"data"


def test_a_download_is_limited(site):
    with pytest.raises(UnreadableImage, match="HTTP 404 Not Found"):
        read(f"{site.url}/gone", timeout=5)
    with pytest.raises(UnreadableImage, match="larger than 1 MiB"):
        read(f"{site.url}/large", timeout=5, max_bytes=1 << 20)
    with pytest.raises(UnreadableImage, match=r"within 0\.5 s"):  # though each piece comes in time
        read(f"{site.url}/slow", timeout=0.5)
    with pytest.raises(UnreadableImage, match=r"within 0\.3 s"):
        read(f"{site.url}/drips", timeout=0.3)
    with pytest.raises(UnreadableImage, match="incomplete"):
        read(f"{site.url}/short", timeout=5)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://u:secret@h/a.jpg", "no user and password here"),
        ("http://h/clip.MP4", "a video is read from a file; download it first"),
        ("http://[::1/a.jpg", "Invalid IPv6 URL"),
        ("http://a..b/x.jpg", "."),
        ("http://h\n/x.jpg", "."),
    ],
)
def test_an_address_that_cannot_be_downloaded(url, message):
    with pytest.raises(UnreadableImage, match=message) as caught:
        read(url, timeout=5)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"])
def test_downloads_from_this_machine_take_no_proxy(site, monkeypatch, name, host):
    no_proxies(monkeypatch)
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    with pytest.raises(UnreadableImage, match=r"refused$") if host == "127.0.0.2" else contextlib.nullcontext():
        assert read(f"{site.url}/a.jpg".replace("127.0.0.1", host), timeout=5) == b"data"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_downloads_from_elsewhere_take_the_proxy(site, monkeypatch, name):
    """Its password is not passed on; and a redirect goes its own way."""
    no_proxies(monkeypatch)
    with http_proxy(site.address) as proxy:
        monkeypatch.setenv(name, f"http://user:secret@{proxy.address}")
        assert read("http://pictures.example/a.jpg", timeout=5) == b"data"
        assert read(f"{site.url}/to-another", timeout=5) == b"data"
        assert [head.split()[1] for head in proxy.asked] == ["http://pictures.example/a.jpg"] * 2
        assert all("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in head for head in proxy.asked)
        del site.asked[:]
        monkeypatch.setenv("no_proxy", "pictures.example")
        with pytest.raises(UnreadableImage, match="cannot be downloaded"):
            read("http://pictures.example/a.jpg", timeout=5)
        assert len(proxy.asked) == 2


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_download_that_fails_names_the_proxy(monkeypatch, scheme):
    no_proxies(monkeypatch)
    monkeypatch.setenv(f"{scheme}_proxy", "http://user:secret@127.0.0.1:1")
    message = rf"cannot be downloaded: .*refused, by the proxy in {scheme}_proxy; no_proxy=pictures\.example goes"
    with pytest.raises(UnreadableImage, match=message) as caught:
        read(f"{scheme}://pictures.example/a.jpg", timeout=5)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv(f"{scheme}_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(UnreadableImage, match=f"the proxy in {scheme}_proxy is not one that m2f can use"):
        read(f"{scheme}://pictures.example/a.jpg", timeout=5)
