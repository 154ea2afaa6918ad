"""The sources of images: files, folders, patterns, standard input and URLs. Videos are in `video`."""

from __future__ import annotations

import glob
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from m2f_client.client_errors import InvalidRequest, UnreadableImage
from m2f_client.images import IMAGE_SUFFIXES
from m2f_client.predict.video import VIDEO_SUFFIXES

STDIN = "-"
ENDINGS = ("_overlay.png", "_overlay.mp4", "_panoptic.png", ".npz")
"""Ends of the names of the files written for an image, after its stem."""

MAX_DOWNLOAD = 256 << 20
"""Largest download in bytes; larger than any image that the server accepts."""

_CHUNK = 1 << 20


def expand(arguments: Sequence[str], *, out: Path | None) -> list[str]:
    """Return the names of all sources, in the order of the arguments, each once.

    A folder gives the images in it and below, a pattern the images and videos that match: both sorted, without hidden
    files. An argument that gives nothing is returned as it is, so that `read` reports why.

    Args:
        arguments: paths, patterns, URLs, or `-`.
        out: output folder; images in it and below are not read.

    Raises:
        InvalidRequest: `out` is itself one of the folders to read.
    """
    names: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN or is_url(argument):
            names.append(argument)
        elif path.is_dir():
            names += _images_below(path, out) or [str(path)]
        elif glob.has_magic(argument) and not path.exists():
            names += _matches(argument) or [argument]
        else:
            names.append(str(path))
    return list(dict.fromkeys(names))


def is_url(name: str) -> bool:
    """Say whether a name is an http(s) address."""
    return name.lower().startswith(("http://", "https://"))


def _images_below(folder: Path, out: Path | None) -> list[str]:
    written = out.resolve() if out is not None else None
    if folder.resolve() == written:
        raise InvalidRequest(f"{folder} is both input and output; choose another folder for the output")
    found: list[str] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and (Path(root) / name).resolve() != written]
        found += [str(Path(root) / name) for name in files if name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(found)


def _matches(pattern: str) -> list[str]:
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    return sorted(str(Path(name)) for name in found if name.lower().endswith(known))


def read(name: str, *, timeout: float, max_download: int = MAX_DOWNLOAD) -> bytes:
    """Return an encoded image.

    Args:
        name: a path, a URL, or `-` for standard input.
        timeout: seconds that a download may take.
        max_download: largest download in bytes.

    Raises:
        UnreadableImage: the image cannot be read or downloaded.
    """
    try:
        if name == STDIN:
            return sys.stdin.buffer.read()
        return _download(name, timeout, max_download) if is_url(name) else Path(name).read_bytes()
    except IsADirectoryError:
        raise UnreadableImage("no JPEG, PNG or WebP in this folder") from None
    except FileNotFoundError as error:
        raise UnreadableImage("nothing matches" if glob.has_magic(name) else str(error.strerror)) from error
    except urllib.error.HTTPError as error:
        raise UnreadableImage(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise UnreadableImage(f"cannot be downloaded: {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:  # urllib raises ValueError for a malformed URL
        raise UnreadableImage(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def _download(url: str, timeout: float, max_download: int) -> bytes:
    deadline = time.monotonic() + timeout
    request = urllib.request.Request(url, headers={"User-Agent": "m2f"})  # some sites refuse Python's own name
    data = bytearray()
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        while chunk := answer.read1(_CHUNK):
            data += chunk
            if len(data) > max_download:
                raise UnreadableImage(f"larger than {max_download >> 20} MiB")
            if time.monotonic() > deadline:
                raise UnreadableImage(f"not downloaded within {timeout:g} s")
        if answer.length:  # bytes announced but not sent
            raise UnreadableImage("the download is incomplete")
    return bytes(data)


def unique_stems(names: Sequence[str], out: Path | None, *, used: Mapping[str, str]) -> dict[str, str]:
    """Return a file stem for each source, such that no output overwrites another output or an input.

    Args:
        names: the sources.
        out: folder for the outputs.
        used: stems that an earlier run into the same folder has used, by source; they are kept.
    """
    inputs = {Path(name).resolve() for name in names}
    stems: dict[str, str] = {}
    taken = {stem.casefold() for stem in used.values()}
    for name in names:
        if name in used:
            stems[name] = used[name]
            continue
        first = stem = _stem(name)
        number = 1
        while stem.casefold() in taken or (
            out is not None and inputs & {(out / f"{stem}{ending}").resolve() for ending in ENDINGS}
        ):
            number += 1
            stem = f"{first}-{number}"
        taken.add(stem.casefold())
        stems[name] = stem
    return stems


def _stem(name: str) -> str:
    if name == STDIN:
        return "stdin"
    if is_url(name):
        return PurePosixPath(unquote(urlsplit(name).path)).stem.replace("\0", "") or "image"
    return Path(name).stem or "image"
