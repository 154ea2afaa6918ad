"""A picture larger than the network, in tiles: which requests it becomes, and one `Result` of their answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.contract import CLASS_NAMES
from m2f.errors import InputError
from m2f.image import decode_image
from m2f.runs import Runs
from m2f.tiles import Part, Tile, grid, merge
from m2f_client.client_errors import InvalidRequest, ServerError, UnreadableImage
from m2f_client.images import ImageSource, encoded
from m2f_client.result import Result
from m2f_client.tiled_outputs import SEMANTIC, SemanticMap, check_outputs, outputs_of_tile, wants_instances

Pixels = npt.NDArray[np.uint8]

_LARGEST = 1 << 33  # pixels of a picture; the RLE's numbers have 35 bits


@dataclass(frozen=True)
class TiledPicture:
    """A picture and its tiles.

    Attributes:
        pixels: uint8 [H, W, 3] RGB or [H, W] grey.
        tiles: its tiles, row by row.
        outputs: names of the outputs that the result has.
    """

    pixels: Pixels
    tiles: Sequence[Tile]
    outputs: Sequence[str]

    @property
    def of_each(self) -> tuple[str, ...]:
        """The outputs to ask for with each tile."""
        return outputs_of_tile(self.outputs)

    def window(self, index: int) -> Pixels:
        """Return the pixels of a tile."""
        x1, y1, x2, y2 = self.tiles[index].rect
        return np.ascontiguousarray(self.pixels[y1:y2, x1:x2])

    def result(self, answers: Iterable[Result]) -> Result:
        """Return the outputs of the picture.

        Args:
            answers: those of the tiles, in their order; each is dropped when it has been read.

        Raises:
            InvalidRequest: the picture is too large for a semantic map.
            ServerError: an answer is about a picture of another size, or has RLE that is none.
        """
        parts: list[Part] = []
        instances = wants_instances(self.outputs)
        semantic = SemanticMap(self.tiles[0].picture) if SEMANTIC in self.outputs else None
        class_names: npt.NDArray[np.object_] | None = None
        for index, answer in enumerate(answers):
            self._check_size(index, answer)
            parts += self._parts(index, answer) if instances else []
            if semantic is not None:
                semantic.add(self.tiles[index], answer.semantic)
            class_names = answer.outputs.get(CLASS_NAMES)
        found = merge(self.tiles, parts)
        height, width = self.pixels.shape[:2]
        rle = np.empty(len(found), np.object_)
        rle[:] = [part.mask.rle(height, width) for part in found]
        outputs: dict[str, npt.NDArray[Any]] = {
            "num_instances": np.array([len(found)], np.int32),
            "scores": np.array([part.score for part in found], np.float32),
            "labels": np.array([part.label for part in found], np.int32),
            "boxes": np.array([part.mask.box for part in found], np.float32).reshape(-1, 4),
            "areas": np.array([part.mask.area for part in found], np.int64),
            "queries": np.array([part.query for part in found], np.int32),
            "rle": rle,
            "size": np.array([height, width], np.int32),
        }
        if class_names is not None:
            outputs[CLASS_NAMES] = class_names
        if semantic is not None:
            outputs[SEMANTIC] = semantic.classes
        wanted = {*self.outputs, *(["size"] if "rle" in self.outputs else [])}
        return Result({name: array for name, array in outputs.items() if name in wanted})

    def _check_size(self, index: int, result: Result) -> None:
        x1, y1, x2, y2 = self.tiles[index].rect
        if result.size != (y2 - y1, x2 - x1):
            raise ServerError(f"the answer is about a picture of {result.size}; the tile is {(y2 - y1, x2 - x1)}")

    def _parts(self, index: int, result: Result) -> list[Part]:
        tile = self.tiles[index]
        try:
            masks = [Runs.of_rle(counts, *result.size, x=tile.rect.x1, y=tile.rect.y1) for counts in result.rle]
        except InputError as error:
            raise ServerError(f"a mask from the server cannot be decoded: {error}") from error
        rows = zip(result.labels.tolist(), result.scores.tolist(), result.queries.tolist(), masks, strict=True)
        return [Part(index, *row, cut=tile.cuts(row[-1].box)) for row in rows if row[-1].area]


def tiled(image: ImageSource, *, tile: int, overlap: float, outputs: Sequence[str]) -> TiledPicture | None:
    """Read a picture and cut it into tiles; None if one tile holds it.

    Raises:
        UnreadableImage: the file cannot be read.
        InvalidRequest: an argument is wrong, or an output cannot be put together of tiles.
    """
    check_tiling(tile=tile, overlap=overlap, outputs=outputs)
    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    if height <= tile and width <= tile:
        return None
    return TiledPicture(pixels, grid(height, width, tile=tile, overlap=overlap), tuple(outputs))


def check_tiling(*, tile: int, overlap: float, outputs: Sequence[str]) -> None:
    """Check what a picture is cut by.

    Raises:
        InvalidRequest: an argument is wrong, or an output cannot be put together of tiles.
    """
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
        raise InvalidRequest(f"tile must be the side of a tile in pixels, 1 or more; got {tile!r}")
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise InvalidRequest(f"overlap must be a part of the tile's side, 0 to less than 1; got {overlap!r}")
    check_outputs(outputs)


def _pixels(image: ImageSource) -> Pixels:
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        return image
    data = encoded(image)
    try:
        return decode_image(data, max_pixels=_LARGEST)
    except InputError as error:
        raise UnreadableImage(f"the image cannot be read: {error}") from error
