"""What every check reports, and the checks that fit any file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LEVELS = ("error", "warning", "note")
GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        level: `error`: it does not work, or not as it should; `warning`: it works until something happens;
            `note`: a fact.
        code: stable, for machines.
        where: the file, and the part of it.
        what: what was found, with names and figures.
        why: why that matters.
        fix: the command or the edit that mends it.
    """

    level: str
    code: str
    where: str
    what: str
    why: str
    fix: str


def error(code: str, where: object, what: str, *, why: str, fix: str) -> Finding:
    """Return a finding that keeps the thing from working."""
    return Finding(level="error", code=code, where=str(where), what=what, why=why, fix=fix)


def warning(code: str, where: object, what: str, *, why: str, fix: str) -> Finding:
    """Return a finding that will hurt one day."""
    return Finding(level="warning", code=code, where=str(where), what=what, why=why, fix=fix)


def note(code: str, where: object, what: str, *, why: str, fix: str) -> Finding:
    """Return a fact worth knowing."""
    return Finding(level="note", code=code, where=str(where), what=what, why=why, fix=fix)


def check_content(path: Path) -> list[Finding]:
    """Find a file that holds nothing, or only the address of what it should hold."""
    if path.stat().st_size == 0:
        why = "a copy or a download broke off, or the disk was full"
        return [error("file-empty", path, f"{path.name} is empty", why=why, fix="copy or make the file again")]
    with path.open("rb") as file:
        head = file.read(len(GIT_LFS_POINTER))
    if head == GIT_LFS_POINTER:
        what = f"{path.name} is a Git LFS pointer, not the file itself"
        why = "the repository was cloned without Git LFS, so the content was never fetched"
        return [error("git-lfs-pointer", path, what, why=why, fix="git lfs install && git lfs pull")]
    return []


def listed(names: Iterable[object]) -> str:
    """Return names for people: `a, b`, or `none`."""
    return ", ".join(map(str, names)) or "none"


def megabytes(count: float) -> str:
    """Return bytes for people."""
    return f"{count / 1e6:.3g} MB"
