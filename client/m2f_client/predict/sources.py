"""Where images come from: files, folders, patterns, standard input and URLs. `video` has the frames of videos."""

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
from m2f_client.predict.video import VIDEO_SUFFIXES

STDIN = "-"
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
ENDINGS = ("_overlay.png", "_overlay.mp4", "_panoptic.png", ".npz")
"""What is written beside a stem."""

MAX_DOWNLOAD = 256 << 20  # bytes: more than any image the server takes, less than what hurts
_CHUNK = 1 << 20


def expand(arguments: Sequence[str], *, out: Path | None) -> list[str]:
    """Return the names of the sources that arguments stand for, in their order, each once.

    A folder stands for the images in it and below, a pattern for the images and videos that match, both sorted and
    without hidden ones. What stands for nothing stays as it is: reading it says why.

    Args:
        arguments: paths, patterns, URLs, or `-`.
        out: folder that is written to; images below it are not read.

    Raises:
        InvalidRequest: `out` is one of the folders: its files could not be told from the images.
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
    """Say whether a name is to be downloaded."""
    return name.lower().startswith(("http://", "https://"))


def _images_below(folder: Path, out: Path | None) -> list[str]:
    written = out.resolve() if out is not None else None
    if folder.resolve() == written:
        raise InvalidRequest(f"{folder} is read and written to; choose another folder for the output")
    found: list[str] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and (Path(root) / name).resolve() != written]
        found += [str(Path(root) / name) for name in files if name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(found)


def _matches(pattern: str) -> list[str]:
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    return sorted(str(Path(name)) for name in found if name.lower().endswith(known))


def read(name: str, *, timeout: float) -> bytes:
    """Return the encoded image that a name stands for.

    Args:
        name: a path, a URL, or `-`.
        timeout: seconds that a download may take.

    Raises:
        UnreadableImage: it cannot be read.
    """
    try:
        if name == STDIN:
            return sys.stdin.buffer.read()
        return _download(name, timeout) if is_url(name) else Path(name).read_bytes()
    except IsADirectoryError:
        raise UnreadableImage("no JPEG, PNG or WebP in this folder") from None
    except FileNotFoundError as error:
        raise UnreadableImage("nothing matches" if glob.has_magic(name) else str(error.strerror)) from error
    except urllib.error.HTTPError as error:
        raise UnreadableImage(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise UnreadableImage(f"cannot be downloaded: {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:  # urllib's ValueError: not a URL after all
        raise UnreadableImage(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def _download(url: str, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    request = urllib.request.Request(url, headers={"User-Agent": "m2f"})  # some sites turn Python's own name away
    data = bytearray()
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        while chunk := answer.read1(_CHUNK):
            data += chunk
            if len(data) > MAX_DOWNLOAD:
                raise UnreadableImage(f"larger than {MAX_DOWNLOAD >> 20} MiB")
            if time.monotonic() > deadline:
                raise UnreadableImage(f"not downloaded within {timeout:g} s")
        if answer.length:  # what the site announced and did not send
            raise UnreadableImage("cut short on the way")
    return bytes(data)


def unique_stems(names: Sequence[str], out: Path | None, *, used: Mapping[str, str]) -> dict[str, str]:
    """Return a file stem for each source, such that no two outputs meet and none overwrites an input.

    Args:
        names: the sources.
        out: folder for the outputs.
        used: source to stem of an earlier run into the same folder: those stay.
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
