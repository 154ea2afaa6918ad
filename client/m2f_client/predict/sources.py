"""The sources of images: files, folders, patterns, lists, object stores, standard input and addresses.

Videos are in `video`.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from m2f_client.client_errors import InvalidRequest, UnreadableImage
from m2f_client.files import MAX_BYTES, not_a_file, read_file
from m2f_client.images import IMAGE_SUFFIXES
from m2f_client.predict.downloads import download, is_url
from m2f_client.predict.shards import WHOLE, Fingerprint, Shard, key_of
from m2f_client.predict.stores import find_objects, is_object, open_object, read_object, store_of
from m2f_client.predict.video import VIDEO_SUFFIXES

STDIN = "-"
OTHER_IMAGE_SUFFIXES = (
    ".arw", ".cr2", ".cr3", ".dng", ".emf", ".exr", ".hdr", ".heic", ".heif", ".ico", ".jxl", ".nef", ".orf", ".psd",
    ".raf", ".rw2", ".svg", ".wmf",
)  # fmt: skip
"""Suffixes of images that cannot be sent. Folders give them all the same, so that each fails by name."""

ENDINGS = ("_overlay.png", "_overlay.mp4", "_panoptic.png", ".npz", ".geojson")
"""Ends of the names of the files written for an image, after its stem."""

_TAKEN = IMAGE_SUFFIXES + OTHER_IMAGE_SUFFIXES
_ALLOWED = "http://, https://, s3://, gs://, az:// and paths"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_ALL_BELOW = re.compile(r"(?:(?<=/)|^)(?:\*\*/+)+")  # the first `**/` of a pattern; several in a row are one
_NAMED = 5  # names that a message lists; it counts the rest


@dataclass
class Sources:
    """What the arguments of a run stand for.

    Attributes:
        shard: the shard whose names are kept.
        names: images and videos of the shard, each once, in the order of the arguments.
        listing: fingerprint of the names of all shards, a name as often as the arguments give it.
        refused: why a name cannot be read, for those that are known not to be images.
        unlisted: of `refused`, the folders, patterns and stores of which it is not known what is in them.
        skipped: names of other files in folders and among the files that match a pattern.
    """

    shard: Shard = WHOLE
    names: list[str] = field(default_factory=list)
    listing: Fingerprint = field(default_factory=Fingerprint)
    refused: dict[str, str] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def take(self, name: str) -> None:
        """Count a name, and keep it if it is in the shard."""
        key = key_of(name)
        self.listing.add(key)
        if self.shard.has(key):
            self.names.append(name)

    def refuse(self, name: str, reason: str, *, unlisted: bool = False) -> None:
        """Take a name that cannot be read."""
        self.take(name)
        self.refused[name] = reason
        if unlisted:
            self.unlisted.append(name)

    def note(self) -> str | None:
        """Return what was skipped, in a sentence; None if nothing was."""
        if not self.skipped:
            return None
        count, more = len(self.skipped), len(self.skipped) - _NAMED
        named = ", ".join(self.skipped[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        files = "1 file that is not an image" if count == 1 else f"{count} files that are not images"
        return f"skipped {files}: {named}"


def expand(
    arguments: Sequence[str], *, lists: Sequence[str] = (), out: Path | None = None, shard: Shard = WHOLE
) -> Sources:
    """Return the sources that the arguments stand for.

    A folder gives the images in it and below, a pattern the images and videos that match: both sorted, without hidden
    files. What has the name of an image but is not a file, such as a pipe, is refused. A link to a folder is skipped:
    it may lead in a circle.

    Args:
        arguments: paths, patterns, URLs, objects such as `s3://bucket/a.jpg`, or `-`.
        lists: files or objects with a name on each line. A name stands for itself: it is no folder and no pattern.
        out: output folder; files in it and below are not read.
        shard: the shard whose names are kept.

    Raises:
        InvalidRequest: `out` is itself one of the folders to read, or a package for an object store is missing.
        UnreadableImage: a list cannot be read.
    """
    sources = Sources(shard)
    for argument in arguments:
        if is_object(argument):
            _add_objects(sources, argument)
        elif "://" not in argument and os.path.isdir(argument):  # noqa: PTH112 (Path.is_dir raises for long names)
            _add_folder(sources, Path(argument), out)
        elif "://" not in argument and glob.has_magic(argument) and not os.path.lexists(argument):
            _add_matches(sources, argument)
        else:
            _add_name(sources, argument)
    for name in lists:
        _add_list(sources, name)
    sources.names = list(dict.fromkeys(sources.names))
    sources.skipped = list(dict.fromkeys(sources.skipped))
    return sources


def _add_name(sources: Sources, name: str) -> None:
    """Add one image or video."""
    if name == STDIN or is_url(name):
        sources.take(name)
    elif is_object(name):
        store_of(name)  # or a million images would fail for one missing package
        sources.take(name)
    elif scheme := _SCHEME.match(name):
        sources.refuse(name, f"{scheme[1]}:// is not read; allowed are {_ALLOWED}")
    else:
        sources.take(str(Path(name)))


def _add_list(sources: Sources, name: str) -> None:
    count = 0
    try:
        with open_object(name) if is_object(name) else Path(name).open("rb") as stream:
            for line in stream:
                if entry := line.rstrip(b"\r\n"):
                    count += 1
                    _add_name(sources, os.fsdecode(entry))
    except OSError as error:
        raise UnreadableImage(f"{name}: the list cannot be read: {error.strerror or error}") from error
    if not count:
        sources.refuse(name, "no names in this list", unlisted=True)


def _add_objects(sources: Sources, address: str) -> None:
    if address.lower().endswith(_TAKEN) and not glob.has_magic(address):
        _add_name(sources, address)
        return
    try:
        found = find_objects(address)
    except UnreadableImage as error:
        sources.refuse(address, str(error), unlisted=True)
        return
    if found == [address]:
        sources.take(address)
    elif not _add_files(sources, found, _TAKEN):
        sources.refuse(address, "no images there", unlisted=True)


def _add_folder(sources: Sources, folder: Path, out: Path | None) -> None:
    written = out.resolve() if out is not None else None
    if folder.resolve() == written:
        raise InvalidRequest(f"{folder} is both input and output; choose another folder for the output")
    unreadable: list[OSError] = []
    files: list[str] = []
    for root, folders, names in os.walk(folder, onerror=unreadable.append):
        seen = [name for name in folders if name[0] != "." and (Path(root) / name).resolve() != written]
        links = [name for name in seen if (Path(root) / name).is_symlink()]
        folders[:] = [name for name in seen if name not in links]
        sources.skipped += [f"{Path(root) / name} (a link to a folder)" for name in sorted(links)]
        files += [str(Path(root) / name) for name in names if name[0] != "."]
    found = _add_files(sources, sorted(files), _TAKEN)
    for error in unreadable:
        sources.refuse(str(Path(error.filename)), error.strerror or str(error), unlisted=True)
    if not found and not unreadable:
        sources.refuse(str(folder), "no images in this folder", unlisted=True)


def _add_matches(sources: Sources, pattern: str) -> None:
    files = sorted({str(Path(name)) for name in _matches(pattern) if not os.path.isdir(name)})  # noqa: PTH112
    if not _add_files(sources, files, _TAKEN + VIDEO_SUFFIXES):
        reason = "no image or video matches" if files else "nothing matches"
        sources.refuse(pattern, reason, unlisted=True)


def _add_files(sources: Sources, files: Iterable[str], suffixes: tuple[str, ...]) -> int:
    """Add the files that have one of the suffixes; return their number."""
    count = 0
    for name in files:
        if not name.lower().endswith(suffixes):
            sources.skipped.append(name)
            continue
        count += 1
        kind = None if is_object(name) else _kind(name)
        if kind is None:
            sources.take(name)
        else:
            sources.refuse(name, f"{kind}, not a file")
    return count


def _kind(name: str) -> str | None:
    """Return what a name stands for if it is not a file. Reading says why if nothing is known."""
    try:
        return not_a_file(os.stat(name).st_mode)  # noqa: PTH116 (as the names are text)
    except OSError:
        return None


def _matches(pattern: str) -> Iterator[str]:
    """Yield the names that match; `**` stands for folders as deep as they go, but not for links to folders.

    `glob` follows links in a circle until the system's limit.
    """
    if pattern.rpartition("/")[2] == "**":
        pattern += "/*"
    found = _ALL_BELOW.search(pattern)
    if found is None:
        yield from glob.glob(pattern)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        return
    before, after = pattern[: found.start()], pattern[found.end() :]
    for top in glob.glob(before) if before else (".",):  # noqa: PTH207
        for root, folders, _ in os.walk(top):
            folders[:] = [name for name in folders if name[0] != "."]
            yield from _matches(f"{glob.escape(root)}/{after}")


def is_file(name: str) -> bool:
    """Say whether a name is that of a file, whose parts can be read: no pipe, address or object."""
    return name != STDIN and "://" not in name and os.path.isfile(name)  # noqa: PTH113 (as the names are text)


def read(name: str, *, timeout: float, max_bytes: int = MAX_BYTES) -> bytes:
    """Return an encoded image.

    Args:
        name: a path, a URL, an object of a store, or `-` for standard input.
        timeout: seconds that a download or a pipe may take.
        max_bytes: largest image in bytes.

    Raises:
        UnreadableImage: the image cannot be read or downloaded.
    """
    if name == STDIN:
        return _read_stdin(max_bytes)
    if is_url(name):
        return download(name, timeout=timeout, max_bytes=max_bytes)
    if is_object(name):
        return read_object(name, timeout=timeout, max_bytes=max_bytes)
    return read_file(name, timeout=timeout, max_bytes=max_bytes)


def _read_stdin(max_bytes: int) -> bytes:
    if sys.stdin is None:
        raise UnreadableImage("standard input is closed")
    try:
        data = sys.stdin.buffer.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: it was closed since
        raise UnreadableImage(getattr(error, "strerror", None) or str(error)) from error
    if len(data) > max_bytes:
        raise UnreadableImage(f"larger than {max_bytes >> 20} MiB")
    return data


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
