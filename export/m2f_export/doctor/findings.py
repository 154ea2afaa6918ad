"""What a check reports: findings, the kinds of them, and how their values are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

LEVELS = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault, or one fact worth knowing.

    Attributes:
        level: `error`: the path does not work, or not as it should; `warning`: the path works until something happens;
            `note`: a fact.
        code: a stable name, for machines.
        where: the file, and the part of the file.
        what: what was found, with names and figures.
        why: the consequence.
        fix: the command or the edit that removes the fault.
    """

    level: str
    code: str
    where: str
    what: str
    why: str
    fix: str


@dataclass(frozen=True)
class Entry:
    """A kind of finding; its texts hold `{placeholders}`."""

    level: str
    code: str
    what: str
    why: str
    fix: str

    def __call__(self, where: object, **values: object) -> Finding:
        """Return the finding at a place, the placeholders filled with the values."""
        what, why, fix = (text.format(**values) for text in (self.what, self.why, self.fix))
        return Finding(level=self.level, code=self.code, where=str(where), what=what, why=why, fix=fix)


error, warning, note = (partial(Entry, level) for level in LEVELS)


def listed(names: Iterable[object]) -> str:
    """Return names for people: `a, b`, or `none`."""
    return ", ".join(map(str, names)) or "none"


def megabytes(count: float) -> str:
    """Return bytes for people: `1.5 MB`."""
    return f"{count / 1e6:.3g} MB"
