"""Where images come from."""

import http.server
import io
import threading
import time

import pytest

from m2f_client import InvalidRequest, UnreadableImage
from m2f_client.predict.sources import expand, read


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
    assert expand(arguments, out=None) == names


def test_what_is_written_is_not_read(folder):
    assert expand(["p"], out=folder / "p/out") == ALL[:-1]
    with pytest.raises(InvalidRequest, match="choose another folder"):
        expand(["p"], out=folder / "empty/../p")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no JPEG, PNG or WebP in this folder"),
        ("no*.jpg", "nothing matches"),
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


def test_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"image")))
    assert read("-", timeout=1) == b"image"


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.jpg")
            self.end_headers()
        elif self.path in ("/a.jpg", "/slow", "/large"):
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range({"/a.jpg": 1, "/slow": 20, "/large": 40}[self.path]):
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
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_download(site):
    assert read(f"{site}/a.jpg", timeout=5) == b"data"
    assert read(f"{site}/moved", timeout=5) == b"data"


def test_a_download_is_limited(site):
    with pytest.raises(UnreadableImage, match="HTTP 404 Not Found"):
        read(f"{site}/gone", timeout=5)
    with pytest.raises(UnreadableImage, match="larger than 1 MiB"):
        read(f"{site}/large", timeout=5, max_download=1 << 20)
    with pytest.raises(UnreadableImage, match=r"within 0\.5 s"):  # though each piece comes in time
        read(f"{site}/slow", timeout=0.5)
    with pytest.raises(UnreadableImage, match="incomplete"):
        read(f"{site}/short", timeout=5)
