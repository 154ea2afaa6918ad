"""What is done with one image: ask the server, write its files, make its line of the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m2f.contract import PANOPTIC_OUTPUTS, RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f.errors import M2FError
from m2f_client.client import Client
from m2f_client.converters import draw
from m2f_client.converters.coco import panoptic_pixels, results
from m2f_client.predict.journal import Line
from m2f_client.predict.video import Frame
from m2f_client.result import Result


@dataclass(frozen=True)
class Item:
    """One image to do.

    Attributes:
        name: as the outputs call it.
        stem: what the names of its files begin with.
        read: returns its encoded bytes; raises UnreadableImage.
        frame: where it comes from a video.
        done: its line of the journal, where an earlier run did it and it only has to be drawn again.
    """

    name: str
    stem: str
    read: Callable[[], bytes]
    frame: Frame | None = None
    done: Line | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        item: the item.
        line: for the journal.
        result: what the server found; None if the image did not work.
        error: why it did not.
        written: files made.
        picture: a frame for the annotated video.
    """

    item: Item
    line: Line
    result: Result | None = None
    error: M2FError | None = None
    written: tuple[Path, ...] = ()
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Job:
    """What to do with each image; safe to call from several threads.

    Attributes:
        client: the connection.
        parameters: request parameters.
        names: the model's class names.
        out: folder for overlays and logits; None writes nothing.
        raw: save the logits too.
        panoptic: save the panoptic segmentation too.
    """

    client: Client
    parameters: Mapping[str, Any]
    names: Sequence[str] | None
    out: Path | None
    raw: bool
    panoptic: bool

    @property
    def artefacts(self) -> tuple[str, ...]:
        """The members of a line that name files, in the order of `journal.ARTEFACTS`."""
        wanted = {"overlay": self.out is not None, "logits": self.raw, "panoptic": self.panoptic}
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def __call__(self, item: Item) -> Outcome:
        """Do one image. What goes wrong with it is in the outcome."""
        try:
            return self._draw_again(item, item.done) if item.done else self._do(item)
        except M2FError as error:
            picture = item.frame.picture() if item.frame is not None and self.out is not None else None
            return Outcome(item, {"file_name": item.name, "error": str(error)}, error=error, picture=picture)

    def _do(self, item: Item) -> Outcome:
        data = item.read()
        outputs = STRUCTURED_OUTPUTS + RAW_OUTPUTS * self.raw + PANOPTIC_OUTPUTS * self.panoptic
        result = self.client.predict(data, outputs=outputs, **self.parameters)
        line = line_of(item.name, result, self.names)
        if self.out is None:
            return Outcome(item, line, result)
        image = item.frame.picture() if item.frame is not None else draw.open_upright(data)
        picture = draw.overlay(image, result, self.names)
        written = []
        if item.frame is None:
            written.append(self._save(line, "overlay", f"{item.stem}_overlay.png", picture.save))
        else:
            line["overlay"] = f"{item.stem}_overlay.mp4"
        written += self._save_maps(item, line, result)
        return Outcome(item, line, result, written=tuple(written), picture=picture if item.frame else None)

    def _save_maps(self, item: Item, line: Line, result: Result) -> list[Path]:
        """Write logits and panoptic segmentation, where they are wanted."""
        stem = item.stem if item.frame is None else f"{item.stem}_frame{item.frame.index:06d}"
        written = []
        if self.raw:
            logits = {name: result.outputs[name] for name in RAW_OUTPUTS}
            written.append(self._save(line, "logits", f"{stem}.npz", lambda path: np.savez(path, **logits)))
        if self.panoptic:
            pixels = Image.fromarray(panoptic_pixels(result.panoptic))
            written.append(self._save(line, "panoptic", f"{stem}_panoptic.png", pixels.save))
            line["segments_info"] = result.segments
        return written

    def _save(self, line: Line, kind: str, name: str, write: Callable[[Path], object]) -> Path:
        """Write one file, and name it in the line."""
        assert self.out is not None
        target = self.out / name
        save(target, write)
        line[kind] = name
        return target

    def _draw_again(self, item: Item, line: Line) -> Outcome:
        assert item.frame is not None  # only videos need what was drawn before
        picture = draw.overlay(item.frame.picture(), result_of(line), self.names)
        return Outcome(item, line, picture=picture)


def line_of(name: str, result: Result, class_names: Sequence[str] | None) -> Line:
    """Return the line of the journal for an image that worked."""
    height, width = result.size
    rows = []
    for row, class_name in zip(results(result, 0), result.names(class_names), strict=True):
        del row["image_id"]
        rows.append({"category_id": row.pop("category_id"), "name": class_name, **row})
    return {"file_name": name, "width": width, "height": height, "instances": rows}


def result_of(line: Line) -> Result:
    """Return what a line of the journal says, as far as it can be drawn: the reverse of `line_of`."""
    rows = line["instances"]
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    rle = np.empty(len(rows), np.object_)
    rle[:] = [row["segmentation"]["counts"].encode("ascii") if "segmentation" in row else b"" for row in rows]
    return Result(
        {
            "scores": np.array([row["score"] for row in rows], np.float32),
            "labels": np.array([row["category_id"] - 1 for row in rows], np.int32),
            "boxes": boxes,
            "rle": rle,
            "size": np.array([line["height"], line["width"]], np.int32),
        }
    )


def save(target: Path, write: Callable[[Path], object]) -> None:
    """Write a file, with a failure as M2FError: the disk may be full or the folder closed."""
    try:
        write(target)
    except OSError as error:
        raise M2FError(f"cannot write {target}: {error.strerror or error}") from error
