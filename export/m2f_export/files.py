"""Read a file that a user names, or say in one sentence why it cannot be read."""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2f_export.export_errors import ExportError, reason

MAX_JSON_BYTES = 1 << 24  # a configuration with 10,000 class names has less than a megabyte
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype", b"<html", b"<?xml")
_HEAD_BYTES = 64


def is_pointer(head: bytes) -> bool:
    """Return whether a file that begins so is a Git LFS pointer."""
    return head.startswith(_POINTER)


def is_page(head: bytes) -> bool:
    """Return whether a file that begins so is a page of a web server."""
    return head.lstrip().lower().startswith(_PAGES)


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file; empty if the file is empty.

    Raises:
        ExportError: the file is missing, is not a regular file, or cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                return file.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ExportError(f"{path} is a link to {path.readlink()}, which does not exist") from error
        raise ExportError(f"{path}: no such file") from error
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    raise ExportError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}; allowed: a file")


def check_file(path: Path) -> bytes:
    """Check that a file has content of its own, and return its first bytes.

    Raises:
        ExportError: the file is missing, cannot be read, is empty, or is a Git LFS pointer or a web page in its place.
    """
    head = read_head(path)
    if not head:
        raise ExportError(f"{path} is empty: a copy or a download was interrupted; make or download it again")
    if is_pointer(head):
        raise ExportError(f"{path} is a Git LFS pointer, not the file itself: git lfs install && git lfs pull")
    if is_page(head):
        raise ExportError(f"{path} is a web page, not the file itself: download it again, from the link to the file")
    return head


def listing(folder: Path) -> list[str]:
    """Return the names in a folder, sorted.

    Raises:
        ExportError: the folder cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ExportError(f"{folder} cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        ExportError: the file cannot be read, is larger than `MAX_JSON_BYTES`, or is not UTF-8.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise ExportError(f"{path} is larger than a configuration can be: {MAX_JSON_BYTES} bytes")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExportError(f"{path} is not text in UTF-8: {reason(error)}") from error
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ExportError: see `read_text`; or the file is not JSON, or has a key twice.
    """
    content = read_text(path)
    try:
        return json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON: {reason(error)}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ExportError: see `read_json`; or the file holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ExportError(f"{path} is not a JSON object, but {type(value).__name__}")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {next(key for key, count in counts.items() if count > 1)!r} is there twice")
    return found
