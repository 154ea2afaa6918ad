"""The journal of a run: a file with a JSON line for each image, from which a stopped run resumes.

The files that a line names (`overlay` and so on, if the run writes them) are written before the line. The line is
handed to the operating system before its image is reported: a killed run loses no reported image, and leaves at most
one incomplete line, at the end. What a line holds stands in `lines`.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from m2f.contract import PUBLIC_MODEL
from m2f.errors import M2FError
from m2f_client.files import not_a_file
from m2f_client.predict.lines import ARTEFACTS, Complete, Line, is_cut, parsed
from m2f_client.predict.video import source_of

_SYNC_S = 1.0  # seconds between two fsync: the work that a power cut may cost


@dataclass(frozen=True)
class RunSettings:
    """What decides the contents of a run's lines. A run with other settings does not resume from them.

    Attributes:
        model: name of the model.
        parameters: request parameters.
        artefacts: which of ARTEFACTS the run writes.
        shard: the run's shard, such as `3/8`; None if the run is not divided.
        tiling: how pictures are cut, as JSON; None if they are not.
    """

    model: str
    parameters: Mapping[str, Any]
    artefacts: tuple[str, ...]
    shard: str | None = None
    tiling: Mapping[str, Any] | None = None

    @classmethod
    def of_line(cls, line: Line) -> RunSettings:
        """Return the settings of the run that wrote a line. Before models had names there was one model."""
        made = tuple(name for name in ARTEFACTS if name in line)
        return cls(line.get("model", PUBLIC_MODEL), line["parameters"], made, line.get("shard"), line.get("tiling"))

    def members(self) -> Line:
        """Return what each line states of the settings."""
        given = {"shard": self.shard, "tiling": self.tiling}
        given = {name: value for name, value in given.items() if value is not None}
        return {"model": self.model, "parameters": self.parameters, **given}

    def __str__(self) -> str:
        parameters = (f"{key}={value}" for key, value in [*self.parameters.items(), *(self.tiling or {}).items()])
        shard = [] if self.shard is None else [f"shard {self.shard}"]
        return ", ".join([f"model {self.model}", *parameters, *self.artefacts, *shard])


class Journal:
    """The journal of this run and of the run that it resumes.

    Opening a file drops an incomplete line at its end and the lines of failed images: those images are done again. The
    last line of a complete shard is dropped too: the run that ends writes it again.

    Args:
        path: the file; None: a temporary file, from which no run resumes.
        settings: the settings of this run.
        sources: the sources of a shard, which must be those of its lines, or the merged file would have others too;
            None: lines of other sources stay as they are.

    Raises:
        M2FError: the file cannot be written, is used by another run, is not a journal, or comes from a run with other
            settings or sources. The file is then left as it was.
    """

    def __init__(self, path: Path | None, settings: RunSettings, sources: Set[str] | None = None) -> None:
        self.path = path
        self._settings = settings
        self._places: dict[str, int] = {}  # image -> where its line starts
        self._synced = time.monotonic()
        try:
            self._file = _open_locked(path)
            self._recover(sources)
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
        text = json.dumps({"file_name": name, **self._settings.members(), **line})
        place = self._append(text)
        if "error" not in line:
            self._places[name] = place
        return text

    def complete(self, line: Complete) -> None:
        """Append the last line of a shard.

        Raises:
            M2FError: the file cannot be written.
        """
        self._append(json.dumps({"complete": asdict(line)}))

    def _append(self, text: str) -> int:
        """Append a line; return where it starts."""
        try:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(text.encode() + b"\n")
            self._file.flush()
            if self.path is not None and time.monotonic() - self._synced > _SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise M2FError(f"cannot write {self.path or 'a temporary file'}: {error.strerror or error}") from error
        return place

    def close(self, *, remove: bool = False) -> None:
        """Close the file, and delete it if `remove`."""
        if self._file.closed:
            return
        if self.path is not None:
            os.fsync(self._file.fileno())
            if remove:
                self.path.unlink()
        self._file.close()

    def _recover(self, sources: Set[str] | None) -> None:
        """Read the lines of an earlier run, and rewrite the file without those whose images are done again."""
        dropped = False
        kept = []
        for number, text in enumerate(self._file, 1):
            line = parsed(text)
            if line is None and is_cut(text):
                dropped = True  # the run was killed while it wrote this line
            elif line is None:
                raise M2FError(f"{self.path}: line {number} was not written by m2f predict; choose another file")
            elif isinstance(line, Complete) or "error" in line:
                dropped = True
            else:
                self._check_settings(line)
                kept.append((line["file_name"], len(text)))
        if sources is not None:
            self._check_sources({source_of(name) for name, _ in kept} - sources)
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

    def _check_sources(self, strangers: Set[str]) -> None:
        if strangers:
            count = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            raise M2FError(
                f"{self.path} has {min(strangers)}{count}, which the sources of this run do not have; "
                "give the same sources, or remove the file to start again"
            )

    def _rewrite(self) -> None:
        assert self.path is not None  # a temporary file starts empty
        partial = self.path.with_name(self.path.name + ".part")
        with partial.open("wb") as copy:
            self._file.seek(0)
            for text in self._file:
                line = parsed(text)
                if isinstance(line, dict) and "error" not in line:
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
