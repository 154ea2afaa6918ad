r"""The answers about the tiles of one picture, in a file until the picture is done: a stopped run resumes by tile.

    {"file_name": "a.tif", "picture": "...", "model": ..., "parameters": {...}, "tiling": {...}}
    {"tile": 0, "scores": [0.98], "labels": [0], "queries": [17], "rle": ["..."], "size": [1024, 1024]}

A tile's line is handed to the operating system before the tile counts as done. A killed run leaves at most one
incomplete line, at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from m2f.errors import M2FError
from m2f_client.answer import Array, check
from m2f_client.client_errors import ServerError
from m2f_client.result import Result

Head = Mapping[str, Any]
_PICTURE = ("file_name", "picture")  # members of the head that tell pictures apart; the others are settings
_DTYPES: dict[str, type] = {"scores": np.float32, "labels": np.int32, "queries": np.int32, "size": np.int32}


class KeptTiles:
    """The answers about the tiles of one picture. Safe to use from several threads.

    Args:
        path: the file. What it has of another picture is dropped.
        head: tells the picture and the settings of the run.

    Attributes:
        dropped: whether the file had tiles of another picture, as if the file of the picture was changed.

    Raises:
        M2FError: the file cannot be read or written, or comes from a run with other settings.
    """

    def __init__(self, path: Path, head: Head) -> None:
        self._path, self._lock = path, Lock()
        self._places: dict[int, int] = {}  # tile -> where its line starts
        self.dropped = False
        try:
            path.parent.mkdir(exist_ok=True)
            self._file = path.open("a+b")
            self._recover(head)
        except OSError as error:
            raise self._unusable(error) from error

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()

    def get(self, tile: int) -> Result | None:
        """Return the answer about a tile; None if there is none yet."""
        with self._lock:
            if tile not in self._places:
                return None
            self._file.seek(self._places[tile])
            text = self._file.readline()
        return _answer(json.loads(text))

    def add(self, tile: int, answer: Result) -> None:
        """Append the answer about a tile.

        Raises:
            M2FError: the file cannot be written.
        """
        columns = {name: answer.outputs[name].tolist() for name in _DTYPES}
        rle = [counts.decode("ascii") for counts in answer.rle]
        with self._lock:
            self._places[tile] = self._append({"tile": tile, **columns, "rle": rle})

    def _append(self, line: Mapping[str, Any]) -> int:
        try:
            place = self._file.seek(0, 2)
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._unusable(error) from error
        return place

    def _recover(self, head: Head) -> None:
        """Find the tiles of an earlier run. From the first line on that is not whole, the file is cut off."""
        self._file.seek(0)
        first = _parsed(self._file.readline())
        if first is None or any(first.get(name) != head[name] for name in _PICTURE):
            self.dropped = first is not None
            self._file.truncate(0)
            self._append(head)
            return
        if first != json.loads(json.dumps(head)):
            settings = ", ".join(f"{name} {json.dumps(first.get(name))}" for name in head if name not in _PICTURE)
            raise M2FError(
                f"{self._path} has tiles of a run with other settings ({settings}); "
                "repeat these settings to resume that run, or remove the file to start again"
            )
        place = self._file.tell()
        for text in self._file:
            line = _parsed(text)
            if line is None or not _is_answer(line):
                break
            self._places[line["tile"]] = place
            place += len(text)
        self._file.truncate(place)

    def _unusable(self, error: OSError) -> M2FError:
        return M2FError(f"cannot write {self._path}: {error.strerror or error}")


def _parsed(text: bytes) -> dict[str, Any] | None:
    """Return a line; None if it is not a whole JSON object."""
    try:
        line = json.loads(text) if text.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _is_answer(line: Mapping[str, Any]) -> bool:
    try:
        check(_answer(line).outputs)
    except (AttributeError, LookupError, OverflowError, ServerError, TypeError, ValueError):
        return False
    return isinstance(line["tile"], int)


def _answer(line: Mapping[str, Any]) -> Result:
    outputs: dict[str, Array] = {name: np.array(line[name], dtype) for name, dtype in _DTYPES.items()}
    return Result({**outputs, "rle": _texts(line["rle"])})


def _texts(counts: Sequence[str]) -> Any:
    rle = np.empty(len(counts), np.object_)
    rle[:] = [text.encode("ascii") for text in counts]
    return rle
