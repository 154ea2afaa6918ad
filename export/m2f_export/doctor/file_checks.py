"""Checks that fit any file."""

from __future__ import annotations

from pathlib import Path

from m2f_export.doctor import catalogue
from m2f_export.doctor.findings import Finding

_POINTER = b"version https://git-lfs.github.com/spec/"


def check_content(path: Path) -> list[Finding]:
    """Find a file that is empty, or that holds only the address of its content."""
    if path.stat().st_size == 0:
        return [catalogue.FILE_EMPTY(path, name=path.name)]
    with path.open("rb") as file:
        head = file.read(len(_POINTER))
    return [catalogue.GIT_LFS_POINTER(path, name=path.name)] if head == _POINTER else []
