r"""The journal of a run: a file with a JSON line for each image, from which a stopped run resumes.

    {"file_name": "a.jpg", "model": "mask2former", "parameters": {...},
     "width": 640, "height": 480,
     "instances": [{"category_id": 1, "name": "cat", "score": 0.98, "bbox": [x, y, w, h], "area": 1234,
                    "segmentation": {"size": [h, w], "counts": "..."}}],
     "overlay": "a_overlay.png", "logits": "a.npz", "panoptic": "a_panoptic.png", "segments_info": [...]}
    {"file_name": "b.jpg", "model": "mask2former", "parameters": {...}, "error": "not a JPEG, PNG or WebP"}

The files that a line names (`overlay` and so on, if the run writes them) are written before the line. The line is
handed to the operating system before its image is reported: a killed run loses no reported image, and leaves at most
one incomplete line, at the end.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from m2f.contract import PUBLIC_MODEL
from m2f.errors import M2FError
from m2f_client.files import not_a_file

Line = dict[str, Any]
ARTEFACTS = ("overlay", "logits", "panoptic")
_START = b'{"file_name": '
_SYNC_S = 1.0  # seconds between two fsync: the work that a power cut may cost


@dataclass(frozen=True)
class RunSettings:
    """What decides the contents of a run's lines. A run with other settings does not resume from them.

    Attributes:
        model: name of the model.
        parameters: request parameters.
        artefacts: which of ARTEFACTS the run writes.
    """

    model: str
    parameters: Mapping[str, Any]
    artefacts: tuple[str, ...]

    @classmethod
    def of_line(cls, line: Line) -> RunSettings:
        """Return the settings of the run that wrote a line. Before models had names there was one model."""
        made = tuple(name for name in ARTEFACTS if name in line)
        return cls(line.get("model", PUBLIC_MODEL), line["parameters"], made)

    def __str__(self) -> str:
        parameters = (f"{key}={value}" for key, value in self.parameters.items())
        return ", ".join([f"model {self.model}", *parameters, *self.artefacts])


class Journal:
    """The journal of this run and of the run that it resumes.

    Opening a file drops an incomplete line at its end and the lines of failed images: those images are done again.

    Args:
        path: the file; None: a temporary file, from which no run resumes.
        settings: the settings of this run.

    Raises:
        M2FError: the file cannot be written, is used by another run, is not a journal, or comes from a run with other
            settings.
    """

    def __init__(self, path: Path | None, settings: RunSettings) -> None:
        self.path = path
        self._settings = settings
        self._places: dict[str, int] = {}  # image -> where its line starts
        self._synced = time.monotonic()
        try:
            self._file = _open_locked(path)
            self._recover()
        except OSError as error:
            raise M2FError(f"cannot write {path or 'a temporary file'}: {error.strerror or error}") from error
        self.resumed = len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def get(self, name: str) -> Line | None:
        """Return the line of an image; None if the image is not done."""
        if name not in self._places:
            return None
        self._file.seek(self._places[name])
        line: Line = json.loads(self._file.readline())
        return line

    def __iter__(self) -> Iterator[Line]:
        """Return all lines, those of failed images included, in the order in which they were written."""
        self._file.seek(0)
        return map(json.loads, self._file)

    @property
    def done(self) -> int:
        """Number of images that worked, in this run and the one that it resumes."""
        return len(self._places)

    def add(self, line: Line) -> str:
        """Append the line of an image, with this run's model and parameters; return the text written.

        Raises:
            M2FError: the file cannot be written.
        """
        name = line["file_name"]
        line = {"file_name": name, "model": self._settings.model, "parameters": self._settings.parameters, **line}
        text = json.dumps(line)
        try:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(text.encode() + b"\n")
            self._file.flush()
            if self.path is not None and time.monotonic() - self._synced > _SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise M2FError(f"cannot write {self.path or 'a temporary file'}: {error.strerror or error}") from error
        if "error" not in line:
            self._places[name] = place
        return text

    def close(self, *, remove: bool = False) -> None:
        """Close the file, and delete it if `remove`."""
        if self._file.closed:
            return
        if self.path is not None:
            os.fsync(self._file.fileno())
            if remove:
                self.path.unlink()
        self._file.close()

    def _recover(self) -> None:
        """Read the lines of an earlier run, and rewrite the file without those whose images are done again."""
        dropped = False
        kept = []
        for number, text in enumerate(self._file, 1):
            line = _parsed(text)
            if line is None and not text.endswith(b"\n") and (text.startswith(_START) or _START.startswith(text)):
                dropped = True  # the run was killed while it wrote this line
            elif line is None:
                raise M2FError(f"{self.path}: line {number} was not written by m2f predict; choose another file")
            elif "error" in line:
                dropped = True
            else:
                self._check_settings(line)
                kept.append((line["file_name"], len(text)))
        if dropped:
            self._rewrite()
        place = 0
        for name, length in kept:
            self._places[name] = place
            place += length

    def _check_settings(self, line: Line) -> None:
        settings = RunSettings.of_line(line)
        if settings != self._settings:
            raise M2FError(
                f"{self.path} comes from a run with other settings ({settings}); "
                "repeat these settings to resume that run, or remove the file to start again"
            )

    def _rewrite(self) -> None:
        assert self.path is not None  # a temporary file starts empty
        partial = self.path.with_name(self.path.name + ".part")
        with partial.open("wb") as copy:
            self._file.seek(0)
            for text in self._file:
                line = _parsed(text)
                if line is not None and "error" not in line:
                    copy.write(text)
            copy.flush()
            os.fsync(copy.fileno())
        old = self._file
        self._file = _open_locked(partial)
        partial.replace(self.path)
        old.close()


def _open_locked(path: Path | None) -> BinaryIO:
    """Open for reading and appending, with a lock that excludes other processes."""
    if path is None:
        return tempfile.TemporaryFile()  # type: ignore[return-value]
    if path.exists() and (kind := not_a_file(path.stat().st_mode)):
        raise M2FError(f"{path} is {kind}, and a run is resumed from a file; - prints the lines")
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise M2FError(f"{path} is in use by another m2f predict; wait for it, or choose another file") from None
    file.seek(0)
    return file


def _parsed(text: bytes) -> Line | None:
    """Return a line of a journal; None if the text is incomplete or not such a line."""
    if not text.endswith(b"\n"):
        return None
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(line, dict) and {"file_name", "parameters"} <= line.keys()
    whole = whole and isinstance(line["parameters"], dict)
    whole = whole and all(_is_name(line[kind]) for kind in ARTEFACTS if kind in line)
    return line if whole and ("error" in line or "instances" in line) else None


def _is_name(value: object) -> bool:
    """Say whether a value names a file in the run's folder. A forged journal could name files elsewhere."""
    return isinstance(value, str) and Path(value).name == value
