"""A picture larger than the network, in tiles: which requests it becomes, and one `Result` of their answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.contract import CLASS_NAMES
from m2f.errors import InputError
from m2f.geometry import SizeHW
from m2f.joining import Part, merge
from m2f.runs import Rect, Runs
from m2f.tiles import Tile, grid
from m2f_client.client_errors import ClientError, InvalidRequest, ServerError
from m2f_client.images import ImageSource, readable_again
from m2f_client.pictures.opening import open_picture
from m2f_client.pictures.picture import Picture, PictureInMemory, Pixels
from m2f_client.result import Result
from m2f_client.tiled_outputs import SEMANTIC, SemanticMap, check_outputs, outputs_of_tile, wants_instances
from m2f_client.transports.protocol import Parameter

WHOLE_SIDE = 4096
"""Longest side of the picture as a whole when it is sent; a longer picture is reduced by a whole number."""

_NOWHERE = Rect(0, 0, 0, 0)


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut.

    Attributes:
        tile: side of a tile in pixels.
        overlap: part of a tile's side, 0 to less than 1, that it shares with its neighbour.
        whole: whether the picture as a whole is one more tile, for the objects that no tile sees whole.

    Raises:
        InvalidRequest: a value is wrong.
    """

    tile: int = 1024
    overlap: float = 0.2
    whole: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):  # a number of numpy
                object.__setattr__(self, name, value.item())
        if not isinstance(self.tile, int) or isinstance(self.tile, bool) or self.tile < 1:
            raise InvalidRequest(f"tile must be the side of a tile in pixels, 1 or more; got {self.tile!r}")
        number = isinstance(self.overlap, int | float) and not isinstance(self.overlap, bool)
        if not number or not 0 <= self.overlap < 1:
            raise InvalidRequest(f"overlap must be a part of the tile's side, 0 to less than 1; got {self.overlap!r}")
        if not isinstance(self.whole, bool):
            raise InvalidRequest(f"whole must be True or False; got {self.whole!r}")

    def members(self) -> dict[str, int | float | bool]:
        """Return the settings as JSON has them."""
        return {"tile": self.tile, "overlap": self.overlap, "whole": self.whole}

    def __str__(self) -> str:
        return f"tile={self.tile}, overlap={self.overlap:g}" + (", whole" if self.whole else "")


class TiledPicture:
    """A picture and its tiles. Safe to use from several threads until `result` is called.

    Args:
        picture: the picture, which stays open as long as `window` is called.
        tiling: how the picture is cut.
        outputs: names of the outputs that the result has.

    Attributes:
        picture: the picture.
        tiles: the tiles, row by row; with `whole`, the picture as a whole is the last one.

    Raises:
        InvalidRequest: there would be too many tiles, or the picture is too large for a semantic map.
    """

    def __init__(self, picture: Picture, tiling: Tiling, outputs: Sequence[str]) -> None:
        self.picture, self._outputs = picture, tuple(outputs)
        self.height, self.width = picture.height, picture.width
        all_of_it = Rect(0, 0, self.width, self.height)
        try:
            tiles = grid(self.height, self.width, tile=tiling.tile, overlap=tiling.overlap)
        except InputError as error:
            raise InvalidRequest(str(error)) from error
        self._whole = len(tiles)  # index of the picture as a whole
        self.tiles: Sequence[Tile] = [*tiles, Tile(all_of_it, _NOWHERE, all_of_it)] if tiling.whole else tiles
        self._parts: list[Part] = []
        self._semantic = SemanticMap(all_of_it) if SEMANTIC in self._outputs else None
        self._class_names: npt.NDArray[np.object_] | None = None

    @property
    def of_each(self) -> tuple[str, ...]:
        """The outputs to ask for with each tile."""
        return outputs_of_tile(self._outputs)

    def window(self, index: int) -> Pixels:
        """Return the pixels of a tile, as they are sent."""
        if index == self._whole:
            return self.picture.reduced(self._factor)
        return self.picture.window(self.tiles[index].rect)

    @cached_property
    def _factor(self) -> int:
        """How many times smaller the picture as a whole is sent."""
        return -(-max(self.height, self.width) // WHOLE_SIDE)

    @contextmanager
    def named(self, index: int) -> Iterator[None]:
        """Name the tile in a ClientError that the block raises."""
        try:
            yield
        except ClientError as error:
            x1, y1, x2, y2 = self.tiles[index].rect
            place = f"tile {index + 1} of {len(self.tiles)} (x {x1} to {x2}, y {y1} to {y2})"
            error.args = (f"{place}: {' '.join(map(str, error.args))}",)
            raise

    def take(self, index: int, answer: Result) -> None:
        """Take the answer about a tile. Tiles may come in any order, each once.

        Raises:
            InvalidRequest: the server made no masks.
            ServerError: the answer is about a picture of another size, or has invalid RLE.
        """
        tile = self.tiles[index]
        step = self._factor if index == self._whole else 1
        expected = -(-(tile.rect.y2 - tile.rect.y1) // step), -(-(tile.rect.x2 - tile.rect.x1) // step)
        if answer.size != expected:
            raise ServerError(f"the answer is about a picture of {answer.size}; the tile has {expected}")
        if self._semantic is not None:
            self._semantic.add(tile, answer.semantic)
        self._class_names = answer.outputs.get(CLASS_NAMES)
        if not wants_instances(self._outputs):
            return
        if not answer.has_masks:
            raise InvalidRequest("tiles are joined by their masks, and 'export_postprocess_mask' is false")
        masks: dict[int, Runs] = {}
        rows = list(zip(answer.labels.tolist(), answer.scores.tolist(), answer.queries.tolist(), strict=True))
        for (_, _, query), counts in zip(rows, answer.rle, strict=True):
            if query not in masks:  # instances of one query have one mask
                mask = _mask(counts, expected).enlarged(step)
                masks[query] = mask.shifted(tile.rect.x1, tile.rect.y1).inside(tile.rect)
        self._parts += [Part(index, *row, masks[row[2]]) for row in rows if masks[row[2]].area]

    def result(self, parameters: Mapping[str, Parameter | None]) -> Result:
        """Return the outputs of the picture, from the answers about its tiles.

        Args:
            parameters: those of the requests. An instance whose score, a mean over tiles, falls below their
                `score_threshold` is left out.
        """
        lowest = float(parameters.get("score_threshold") or 0.0)
        found = [part for part in merge(self.tiles, self._parts) if part.score >= lowest]
        rle = np.empty(len(found), np.object_)
        rle[:] = [part.mask.rle(self.height, self.width) for part in found]
        outputs: dict[str, npt.NDArray[Any]] = {
            "num_instances": np.array([len(found)], np.int32),
            "scores": np.array([part.score for part in found], np.float32),
            "labels": np.array([part.label for part in found], np.int32),
            "boxes": np.array([part.mask.box for part in found], np.float32).reshape(-1, 4),
            "areas": np.array([part.mask.area for part in found], np.int64),
            "queries": np.array([part.query for part in found], np.int32),
            "rle": rle,
            "size": np.array([self.height, self.width], np.int32),
        }
        if self._class_names is not None:
            outputs[CLASS_NAMES] = self._class_names
        if self._semantic is not None:
            outputs[SEMANTIC] = self._semantic.classes
        wanted = {*self._outputs, *(["size"] if "rle" in self._outputs else [])}
        return Result({name: array for name, array in outputs.items() if name in wanted})


def _mask(counts: bytes, size: SizeHW) -> Runs:
    try:
        return Runs.of_rle(counts, *size)
    except InputError as error:
        raise ServerError(f"a mask from the server cannot be decoded: {error}") from error


def tiled(
    image: ImageSource, tiling: Tiling, outputs: Sequence[str], *, timeout: float | None = None
) -> TiledPicture | ImageSource:
    """Read a picture and cut it into tiles; if one tile holds it, return what `predict` takes instead.

    Args:
        image: as for `Client.predict`.
        tiling: how the picture is cut.
        outputs: names of the outputs that the result has.
        timeout: seconds that reading a pipe may take; None waits for ever.

    Raises:
        UnreadableImage: the file cannot be read.
        InvalidRequest: the image is not an `ImageSource`, an output cannot be put together of tiles, or there would be
            too many tiles.
    """
    check_outputs(outputs)
    source = readable_again(image, timeout=timeout)
    with ExitStack() as unless_cut:
        picture = unless_cut.enter_context(open_picture(source))
        if max(picture.height, picture.width) > tiling.tile:
            cut = TiledPicture(picture, tiling, outputs)
            unless_cut.pop_all()
            return cut
        if isinstance(picture, PictureInMemory):
            return source
        return picture.window(Rect(0, 0, picture.width, picture.height))  # the server may not read such a file
