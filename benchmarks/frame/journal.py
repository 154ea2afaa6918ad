"""What has been measured, a JSON line for each cell."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import machine


class Journal:
    """The measured cells of one part.

    The first line of the file holds hardware and versions. A journal of another machine, or of other versions, is
    begun anew: its figures do not belong beside new ones.

    Args:
        path: path of the file, which is made at the first cell.
        facts: hardware and versions now, as `machine.describe` returns them.
        fresh: whether to forget what is in the file.

    Attributes:
        facts: hardware and versions at the first cell.
        begun_anew: names of the facts that differ from those in the file; what was in the file is dropped.
    """

    def __init__(self, path: Path, facts: Mapping[str, str], *, fresh: bool = False) -> None:
        self._path = path
        self.facts: dict[str, str] = dict(facts)
        self.begun_anew: list[str] = []
        self._rows: dict[str, list[dict[str, Any]]] = {}
        if not fresh:
            self._read()
        self._write()

    def _read(self) -> None:
        lines = self._path.read_text().splitlines() if self._path.is_file() else []
        entries = [entry for line in lines if (entry := _parsed(line))]
        if not entries or "facts" not in entries[0]:
            return
        self.begun_anew = machine.differences(entries[0]["facts"], self.facts)
        if not self.begun_anew:
            self.facts = entries[0]["facts"]
            self._rows = {_key(entry["cell"]): entry["rows"] for entry in entries[1:]}

    def _write(self) -> None:
        """Write what is known: drops a line that a kill cut off, and what is forgotten."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"facts": self.facts}]
        lines += [{"cell": json.loads(key), "rows": rows} for key, rows in self._rows.items()]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        temporary.replace(self._path)

    def __contains__(self, cell: Mapping[str, Any]) -> bool:
        return _key(cell) in self._rows

    def add(self, cell: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of a cell, so that they survive a kill."""
        entry = {"cell": dict(cell), "rows": [dict(row) for row in rows]}
        self._rows[_key(cell)] = entry["rows"]
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of these cells that have been measured, parameters first."""
        return [{**cell, **row} for cell in cells for row in self._rows.get(_key(cell), [])]


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:  # the last line of a run that was killed
        return None
    return entry
