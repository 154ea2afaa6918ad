"""The work for one image: ask the server, write the image's files, make its line of the journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m2f.contract import PANOPTIC_OUTPUTS, RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f.errors import M2FError
from m2f_client.client import Client
from m2f_client.client_errors import UnreadableImage
from m2f_client.converters import coco, draw
from m2f_client.converters.coco import panoptic_pixels
from m2f_client.images import served
from m2f_client.pictures.geo import Geo
from m2f_client.pictures.opening import read_geo
from m2f_client.predict.lines import Line
from m2f_client.predict.patience import Patience
from m2f_client.predict.tiling import Seen, Tiles
from m2f_client.predict.video import Frame
from m2f_client.result import Result


@dataclass(frozen=True)
class Item:
    """One image of a run.

    Attributes:
        name: name of the image in the outputs.
        stem: start of the names of the files written for the image.
        read: returns the encoded bytes; raises UnreadableImage.
        frame: the video frame, if the image is one.
        file: path of the image, if it is a file that may be read in parts.
        done: the journal's line, if an earlier run did the image. It is then only drawn again, for the video.
    """

    name: str
    stem: str
    read: Callable[[], bytes]
    frame: Frame | None = None
    file: str | None = None
    done: Line | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome for one image.

    Attributes:
        item: the image.
        line: the image's line for the journal.
        result: the server's answer; None if the image failed, or was only drawn again.
        error: why the image failed; None if it did not.
        written: files written, each with a remark if there is one.
        picture: frame for the annotated video.
    """

    item: Item
    line: Line
    result: Result | None = None
    error: M2FError | None = None
    written: tuple[str, ...] = ()
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Job:
    """Does one image after another; safe to call from several threads.

    Attributes:
        client: the connection.
        patience: asks again while the server is away.
        parameters: request parameters.
        names: the model's class names.
        out: folder for the files of each image; None: no files.
        raw: whether to save the logits.
        panoptic: whether to save the panoptic segmentation.
        geo: whether to save the instances on earth; each image must be a GeoTIFF then.
        tiles: does pictures in tiles; None: each picture is one request.
    """

    client: Client
    patience: Patience
    parameters: Mapping[str, Any]
    names: Sequence[str] | None
    out: Path | None
    raw: bool
    panoptic: bool
    geo: bool = False
    tiles: Tiles | None = None

    @property
    def artefacts(self) -> tuple[str, ...]:
        """Members of a journal line that name files, in the order of `journal.ARTEFACTS`."""
        wanted = {"overlay": self.out is not None, "logits": self.raw, "panoptic": self.panoptic, "geojson": self.geo}
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def __call__(self, item: Item) -> Outcome:
        """Do one image. An error is not raised but returned in the outcome: no image ends a run of a million."""
        try:
            return self._draw_again(item, item.done) if item.done else self._do(item)
        except M2FError as error:
            return self._failed(item, error)
        except Exception as error:  # of a library, by an image that nobody has thought of
            return self._failed(item, M2FError(f"{type(error).__name__}: {error}"))

    def _failed(self, item: Item, error: M2FError) -> Outcome:
        picture = item.frame.picture() if item.frame is not None and self.out is not None else None
        return Outcome(item, {"file_name": item.name, "error": str(error)}, error=error, picture=picture)

    def _do(self, item: Item) -> Outcome:
        geo = _geo_of(item) if self.geo else None  # before any request
        if self.tiles is not None:
            with self.tiles.seen(item.name, item.file or item.read()) as seen:
                return self._written(item, seen, geo)
        return self._written(item, self._seen(item), geo)

    def _seen(self, item: Item) -> Seen:
        """Ask about an image in one request."""
        data = served(item.read())
        outputs = STRUCTURED_OUTPUTS + RAW_OUTPUTS * self.raw + PANOPTIC_OUTPUTS * self.panoptic
        result = self.patience(lambda: self.client.predict(data, outputs=outputs, **self.parameters))

        def overlay(names: Sequence[str] | None) -> Image.Image:
            image = item.frame.picture() if item.frame is not None else draw.open_upright(data)
            return draw.overlay(image, result, names)

        return Seen(result, 1, overlay)

    def _written(self, item: Item, seen: Seen, geo: Geo | None) -> Outcome:
        """Write the files of an image, and make its line."""
        line = line_of(item.name, seen.result, self.names)
        if self.out is None:
            return Outcome(item, line, seen.result)
        picture = seen.overlay(self.names)
        written = []
        if item.frame is None:
            remark = "" if seen.factor == 1 else f" (1/{seen.factor} of the picture's sides)"
            written.append(self._save(line, "overlay", f"{item.stem}_overlay.png", picture.save) + remark)
        else:
            line["overlay"] = f"{item.stem}_overlay.mp4"
        written += self._save_maps(item, line, seen.result)
        if geo is not None:
            features = json.dumps(seen.result.to_geojson(self.names, geo=geo))
            written.append(self._save(line, "geojson", f"{item.stem}.geojson", lambda path: path.write_text(features)))
        return Outcome(item, line, seen.result, written=tuple(written), picture=picture if item.frame else None)

    def _save_maps(self, item: Item, line: Line, result: Result) -> list[str]:
        """Write logits and panoptic segmentation, as far as the run saves them."""
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

    def _save(self, line: Line, kind: str, name: str, write: Callable[[Path], object]) -> str:
        """Write one file, add its name to the line, and return its path."""
        assert self.out is not None
        target = self.out / name
        save(target, write)
        line[kind] = name
        return str(target)

    def _draw_again(self, item: Item, line: Line) -> Outcome:
        assert item.frame is not None  # only frames are drawn again
        picture = draw.overlay(item.frame.picture(), result_of(line), self.names)
        return Outcome(item, line, picture=picture)


def _geo_of(item: Item) -> Geo:
    if item.file is None:
        raise UnreadableImage("only a file on this machine, a GeoTIFF, says where on earth it is; download the image")
    try:
        return read_geo(item.file)
    except UnreadableImage as error:  # the message begins with the path
        raise UnreadableImage(str(error).removeprefix(f"{item.file}: ")) from error


def line_of(name: str, result: Result, class_names: Sequence[str] | None) -> Line:
    """Return the line of the journal for an image that worked."""
    height, width = result.size
    found = []
    for row, class_name in zip(coco.rows(result, 0), result.names(class_names), strict=True):
        del row["image_id"]
        found.append({"category_id": row.pop("category_id"), "name": class_name, **row})
    return {"file_name": name, "width": width, "height": height, "instances": found}


def result_of(line: Line) -> Result:
    """Return the result of a journal line, with the outputs that drawing needs: the reverse of `line_of`."""
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
    """Write a file; raise M2FError if that fails, for example because the disk is full."""
    try:
        write(target)
    except OSError as error:
        raise M2FError(f"cannot write {target}: {error.strerror or error}") from error
