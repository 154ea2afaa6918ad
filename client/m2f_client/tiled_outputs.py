"""What a picture in tiles can answer with: which outputs, what each tile is asked for, and the semantic map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m2f.contract import CLASS_NAMES, PANOPTIC_OUTPUTS, RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f.runs import Rect
from m2f.tiles import Tile
from m2f_client.answer import MAX_PIXELS_SEEN, Array
from m2f_client.client_errors import InvalidRequest

SEMANTIC = "semantic"
ALLOWED = (*STRUCTURED_OUTPUTS, CLASS_NAMES, SEMANTIC)

_NEEDED = ("scores", "labels", "queries", "rle", "size")  # to join the instances of the tiles
_NO_DENSE = "dense masks of a large picture do not fit in memory; ask for 'rle', which result.mask(index) decodes"
_REASONS = {
    **dict.fromkeys(
        PANOPTIC_OUTPUTS,
        "each tile decides for itself which segment a pixel belongs to, so two tiles can contradict each other about "
        "the same pixel; ask for the instances and 'semantic'",
    ),
    **dict.fromkeys(RAW_OUTPUTS, "logits belong to one run of the network, and each tile is a run of its own"),
    **dict.fromkeys(("masks", "packed_masks"), _NO_DENSE),
}


def check_outputs(outputs: Sequence[str]) -> None:
    """Check that the outputs can be put together of tiles.

    Raises:
        InvalidRequest: an output cannot, as the message says why; or there are none.
    """
    if not outputs:
        raise InvalidRequest("no outputs asked for")
    for name in outputs:
        if name not in ALLOWED:
            reason = _REASONS.get(name, "there is no such output")
            raise InvalidRequest(f"'{name}' is not available by tiles: {reason} (allowed: {', '.join(ALLOWED)})")


def wants_instances(outputs: Sequence[str]) -> bool:
    """Return whether the outputs need the instances of the tiles."""
    return any(name not in (SEMANTIC, CLASS_NAMES, "size") for name in outputs)


def outputs_of_tile(outputs: Sequence[str]) -> tuple[str, ...]:
    """Return the outputs to ask for with each tile."""
    instances = _NEEDED if wants_instances(outputs) else ("size",)
    return (*instances, *(name for name in (CLASS_NAMES, SEMANTIC) if name in outputs))


class SemanticMap:
    """The semantic map of a picture, filled tile by tile.

    Each pixel has the class that the tile says which has the pixel farthest from its edges (`Tile.own`): of all tiles
    it sees most around the pixel. Scores are not averaged in the overlap, since the server sends classes, not scores.

    Args:
        picture: the picture.

    Attributes:
        classes: int32 [H, W], class index of each pixel, once all tiles are added.

    Raises:
        InvalidRequest: the map would have more than `MAX_PIXELS_SEEN` pixels, at 4 bytes each.
    """

    def __init__(self, picture: Rect) -> None:
        height, width = picture.y2 - picture.y1, picture.x2 - picture.x1
        if height * width > MAX_PIXELS_SEEN:
            raise InvalidRequest(
                f"'{SEMANTIC}' of {height} x {width} pixels is too large: a map has at most {MAX_PIXELS_SEEN} pixels "
                "(1 GiB); cut the picture into parts, or ask for instances, which have no such limit"
            )
        self.classes: Array = np.empty((height, width), np.int32)

    def add(self, tile: Tile, classes: Array) -> None:
        """Write the pixels that are a tile's own.

        Args:
            tile: the tile.
            classes: int32 [h, w], its semantic map.
        """
        x1, y1, x2, y2 = tile.own
        left, top = tile.rect.x1, tile.rect.y1
        self.classes[y1:y2, x1:x2] = classes[y1 - top : y2 - top, x1 - left : x2 - left]
