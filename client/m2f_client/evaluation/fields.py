"""The fields of COCO files, which people and many tools write: each is checked when it is read.

A field that is null counts as absent. A whole number may also be written as 3.0 or "3", as spreadsheets do.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2f.errors import shown
from m2f.parameters import is_int, is_number
from m2f_client.client_errors import ClientError

MAX_FILE_BYTES = 1 << 30
"""Largest JSON file that is read. Its content takes up to 40 times as much memory; of COCO's own files, 7 times."""

_OTHER_FILES = {  # beginnings of files that are taken for JSON
    b"\x1f\x8b": "compressed with gzip; unpack it with gunzip",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"version https://git-lfs": "a pointer to a file in Git LFS; fetch the file with git lfs pull",
    b"<": "HTML or XML",
}


_DIGITS = 20  # of a whole number in quotes: less than 64 bits


class InvalidDataset(ClientError):  # noqa: N818 (as the others of its tree)
    """The data set, or results to compare on it, cannot be used; the message names file and place."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file in UTF-8, UTF-16 or UTF-32.

    Raises:
        InvalidDataset: the file cannot be read, is larger than `MAX_FILE_BYTES`, or is not JSON.
    """
    data = _read(path)
    if not data or data.isspace():
        raise InvalidDataset(f"{path} is empty")
    for beginning, what in _OTHER_FILES.items():
        if data.startswith(beginning):
            raise InvalidDataset(f"{path} is not JSON but {what}")
    try:
        return json.loads(data)
    except RecursionError:
        raise InvalidDataset(f"{path} is not a COCO file: its lists and objects are nested too deeply") from None
    except ValueError as error:
        lines = ": several JSON documents, as in JSON Lines; allowed is one" if "Extra data" in str(error) else ""
        raise InvalidDataset(f"{path} is not JSON{lines} ({error})") from None


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidDataset(f"{path} is not a file, but a folder, a pipe or a device")
        if status.st_size > MAX_FILE_BYTES:
            raise InvalidDataset(f"{path} has {status.st_size} bytes; allowed are {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise InvalidDataset(f"{path}: {error.strerror}") from error


@dataclass(frozen=True)
class Row:
    """A JSON object whose fields are checked when they are read.

    Attributes:
        where: the file and the place in it, for messages.
        values: the object.
        identity: the id of the object or of the one around it, for messages; "" without an id.
    """

    where: str
    values: Mapping[str, Any]
    identity: str = ""

    def whole(self, name: str, low: int | None = None, high: int | None = None, *, absent: int | None = None) -> int:
        """Return a whole number from `low` to `high`; `absent` where the field is absent, unless `absent` is None."""
        value = self.values.get(name)
        number = absent if value is None else _whole(value)
        if number is None or (low is not None and number < low) or (high is not None and number > high):
            span = "" if low is None else f" >= {low}" if high is None else f" from {low} to {high}"
            raise self.invalid(name, f"a whole number{span}")
        return number

    def number(self, name: str, low: float, high: float, *, absent: float | None = None) -> float:
        """Return a number from `low` to `high`; `absent` where the field is absent, unless `absent` is None."""
        value = self.values.get(name)
        number: Any = absent if value is None else value
        if not (is_number(number) and low <= number <= high):
            raise self.invalid(name, f"a number from {low:g} to {high:g}")
        return float(number)

    def text(self, name: str) -> str:
        """Return a text that is not empty."""
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise self.invalid(name, "text")
        return value

    def flag(self, name: str, *, absent: bool | None = None) -> bool:
        """Return true or false, which may be written as 1 or 0; `absent` where the field is absent."""
        value = self.values.get(name)
        if isinstance(value, bool):
            return value
        return bool(self.whole(name, 0, 1, absent=absent))

    def part(self, name: str) -> Row:
        """Return an object within this one."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.invalid(name, "an object")
        return Row(f"{self.where}.{name}", value, self.identity)

    def rows(self, name: str) -> Iterator[Row]:
        """Yield the rows of a list of objects."""
        value = self.values.get(name)
        if not isinstance(value, list):
            raise self.invalid(name, "a list of objects")
        return rows(f"{self.where}.{name}", value)

    def invalid(self, name: str, allowed: str) -> InvalidDataset:
        """Return the error about a field that is absent or has another value than is allowed."""
        value = self.values.get(name)
        got = "it is absent or null" if value is None else f"got {shown(value)}"
        return self.error(f" has no valid {name!r}: {got}; allowed: {allowed}")

    def error(self, message: str) -> InvalidDataset:
        """Return an error that begins with the place and ends with the id."""
        return InvalidDataset(f"{self.where}{message}" + (f" (id {self.identity})" if self.identity else ""))


def rows(where: str, values: Sequence[object]) -> Iterator[Row]:
    """Yield the rows of a list.

    Args:
        where: the file and the place of the list in it.
        values: the list.

    Raises:
        InvalidDataset: a member of the list is not an object.
    """
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise InvalidDataset(f"{where}[{index}] is {shown(value)}; allowed: an object")
        identity = value.get("id")
        yield Row(f"{where}[{index}]", value, "" if identity is None else shown(identity))


def _whole(value: Any) -> int | None:
    """Return 3 for 3, 3.0 and "3", and None for what is not a whole number."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        digits = value.strip().removeprefix("-")
        return int(value) if digits.isdecimal() and len(digits) < _DIGITS else None
    return value if is_int(value) else None
