"""Files that are none: pipes, devices, sockets, folders, and what grows without end."""

import errno
import os
import socket
import threading

import pytest

from m2f_client import UnreadableImage
from m2f_client.files import read_file


def test_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * (3 << 20))
    assert read_file(tmp_path / "a") == read_file(str(tmp_path / "a")) == b"x" * (3 << 20)
    (tmp_path / "empty").touch()
    assert read_file(tmp_path / "empty") == b""
    (tmp_path / "link").symlink_to("a")
    assert len(read_file(tmp_path / "link")) == 3 << 20


def test_a_name_in_bytes(tmp_path):
    class Entry:
        def __fspath__(self):
            return os.fsencode(tmp_path) + b"/\xff"

    (tmp_path / "\udcff").write_bytes(b"x")
    assert read_file(Entry()) == b"x"


@pytest.mark.parametrize("limit", [10, 1 << 20])
def test_a_file_that_is_too_large(tmp_path, limit):
    (tmp_path / "a").write_bytes(bytes(limit))
    assert len(read_file(tmp_path / "a", max_bytes=limit)) == limit
    (tmp_path / "a").write_bytes(bytes(limit + 1))
    with pytest.raises(UnreadableImage, match="larger than"):
        read_file(tmp_path / "a", max_bytes=limit)


def test_a_large_file_is_not_read_at_all(tmp_path, monkeypatch):
    with (tmp_path / "a").open("wb") as sparse:
        sparse.truncate(1 << 40)
    monkeypatch.setattr(os, "open", None)
    with pytest.raises(UnreadableImage, match="larger than 256 MiB"):
        read_file(tmp_path / "a")


def test_a_file_that_grows_faster_than_it_is_read(tmp_path, monkeypatch):
    file, reading = tmp_path / "log", os.read
    file.write_bytes(bytes(1 << 20))

    def read(number, count):
        with file.open("ab") as growing:
            growing.write(bytes(count))
        return reading(number, count)

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(UnreadableImage, match="larger than 8 MiB"):
        read_file(file, max_bytes=8 << 20)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/zero", "a device, not a file"),
        ("/dev/null", "a device, not a file"),
        ("/", "a folder, not a file"),
        ("socket", "a socket, not a file"),
        ("nowhere", os.strerror(errno.ENOENT)),
        ("dangling", os.strerror(errno.ENOENT)),
        ("loop", os.strerror(errno.ELOOP)),
        ("x" * 300, os.strerror(errno.ENAMETOOLONG)),
        ("a\0b", "null"),
        ("/dev/fd/99999", os.strerror(errno.ENOENT)),
    ],
)
def test_what_is_not_a_file_says_so(tmp_path, monkeypatch, path, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(UnreadableImage, match=reason):
            read_file(path)


def test_a_pipe_that_nobody_writes_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableImage, match=r"the pipe did not end within 0\.1 s"):
        read_file(tmp_path / "pipe", timeout=0.1)


def test_a_pipe_whose_writer_stops_in_the_middle():
    reader, writer = os.pipe()
    try:
        os.write(writer, b"half")
        with pytest.raises(UnreadableImage, match=r"the pipe did not end within 0\.1 s"):
            read_file(f"/dev/fd/{reader}", timeout=0.1)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_pipe_that_is_written_later(tmp_path, timeout):
    os.mkfifo(tmp_path / "pipe")
    data = os.urandom(1 << 20)
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[data])
    writer.start()
    assert read_file(tmp_path / "pipe", timeout=timeout) == data
    writer.join()


def test_a_pipe_without_end():
    reader, writer = os.pipe()

    def write():
        try:
            while True:
                os.write(writer, bytes(1 << 16))
        except OSError:
            pass

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    with pytest.raises(UnreadableImage, match="larger than 1 MiB"):
        read_file(f"/dev/fd/{reader}", timeout=60, max_bytes=1 << 20)
    os.close(reader)
    thread.join(60)
    os.close(writer)
