r"""The journal of a run: a file with a JSON line for each image, from which a stopped run resumes.

    {"file_name": "a.jpg", "model": "mask2former", "parameters": {...},
     "width": 640, "height": 480,
     "instances": [{"category_id": 1, "name": "cat", "score": 0.98, "bbox": [x, y, w, h], "area": 1234,
                    "segmentation": {"size": [h, w], "counts": "..."}}],
     "overlay": "a_overlay.png", "logits": "a.npz", "panoptic": "a_panoptic.png", "segments_info": [...]}
    {"file_name": "b.jpg", "model": "mask2former", "parameters": {...}, "error": "not a JPEG, PNG or WebP"}

The lines of a shard state it: `"shard": "3/8"`. Once all its images have a line, a last line says so; see `Complete`.

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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from m2f.contract import PUBLIC_MODEL
from m2f.errors import M2FError
from m2f_client.files import not_a_file

Line = dict[str, Any]
ARTEFACTS = ("overlay", "logits", "panoptic")
_STARTS = (b'{"file_name": ', b'{"complete": ')  # of the lines that a run writes
_SYNC_S = 1.0  # seconds between two fsync: the work that a power cut may cost


@dataclass(frozen=True)
class RunSettings:
    """What decides the contents of a run's lines. A run with other settings does not resume from them.

    Attributes:
        model: name of the model.
        parameters: request parameters.
        artefacts: which of ARTEFACTS the run writes.
        shard: the run's shard, such as `3/8`; None if the run is not divided.
    """

    model: str
    parameters: Mapping[str, Any]
    artefacts: tuple[str, ...]
    shard: str | None = None

    @classmethod
    def of_line(cls, line: Line) -> RunSettings:
        """Return the settings of the run that wrote a line. Before models had names there was one model."""
        made = tuple(name for name in ARTEFACTS if name in line)
        return cls(line.get("model", PUBLIC_MODEL), line["parameters"], made, line.get("shard"))

    def members(self) -> Line:
        """Return what each line states of the settings."""
        shard = {} if self.shard is None else {"shard": self.shard}
        return {"model": self.model, "parameters": self.parameters, **shard}

    def __str__(self) -> str:
        parameters = (f"{key}={value}" for key, value in self.parameters.items())
        shard = [] if self.shard is None else [f"shard {self.shard}"]
        return ", ".join([f"model {self.model}", *parameters, *self.artefacts, *shard])


@dataclass(frozen=True)
class Complete:
    """The last line of a shard's journal: each image of the shard has a line before it.

    Attributes:
        shard: the shard, such as `3/8`.
        images: fingerprint of the shard's sources.
        listing: fingerprint of the sources of all shards. It differs if the shards did not see the same images.
        model: name of the model.
        parameters: request parameters.
        server: address of the server.
        class_names: the model's class names.
    """

    shard: str
    images: str
    listing: str
    model: str
    parameters: Mapping[str, Any]
    server: str
    class_names: Sequence[str] | None


class Journal:
    """The journal of this run and of the run that it resumes.

    Opening a file drops an incomplete line at its end and the lines of failed images: those images are done again. The
    last line of a complete shard is dropped too: the run that ends writes it again.

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

    @property
    def names(self) -> Collection[str]:
        """Names of the images that worked, in this run and the one that it resumes."""
        return self._places.keys()

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

    def _recover(self) -> None:
        """Read the lines of an earlier run, and rewrite the file without those whose images are done again."""
        dropped = False
        kept = []
        for number, text in enumerate(self._file, 1):
            line = parsed(text)
            if line is None and _is_cut(text):
                dropped = True  # the run was killed while it wrote this line
            elif line is None:
                raise M2FError(f"{self.path}: line {number} was not written by m2f predict; choose another file")
            elif isinstance(line, Complete) or "error" in line:
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


def parsed(text: bytes) -> Line | Complete | None:
    """Return a line of a journal; None if the text is incomplete or not such a line."""
    if not text.endswith(b"\n"):
        return None
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    if "complete" in line:
        return _completed(line["complete"])
    whole = {"file_name", "parameters"} <= line.keys()
    whole = whole and isinstance(line["file_name"], str) and isinstance(line["parameters"], dict)
    whole = whole and all(_is_name(line[kind]) for kind in ARTEFACTS if kind in line)
    return line if whole and ("error" in line or "instances" in line) else None


def _completed(stated: object) -> Complete | None:
    """Return what the last line of a shard states; None if its members are not those of `Complete`."""
    if not isinstance(stated, dict) or stated.keys() != {field.name for field in fields(Complete)}:
        return None
    texts = all(isinstance(stated[name], str) for name in ("shard", "images", "listing", "model", "server"))
    return Complete(**stated) if texts and isinstance(stated["class_names"], list | None) else None


def _is_cut(text: bytes) -> bool:
    """Say whether a text may be the beginning of a line that a killed run wrote."""
    return not text.endswith(b"\n") and any(text.startswith(start) or start.startswith(text) for start in _STARTS)


def _is_name(value: object) -> bool:
    """Say whether a value names a file in the run's folder. A forged journal could name files elsewhere."""
    return isinstance(value, str) and Path(value).name == value
