"""Whether the answer depends on where the grid lies: the same objects under grids that are moved against each other.

The network sees other pixels in each tile, so its answers differ a little. Counted are objects that were found once
under one grid and not under the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from m2f.tiles import grid
from m2f_client import Client

from ..frame import Part, Row, Table
from .mosaic import CELL, Thing
from .mosaics import IN_FLIGHT, PICTURES, Stage, staged
from .ours import found
from .scores import Found, Outcome, outcomes, placed

OVERLAP, THRESHOLD = 0.25, 0.3
OFFSETS = ((1, 0), (0, 17), (61, 17), (100, 30), (128, 128), (191, 75))  # pixels, x and y


def part(*, quick: bool) -> Part:
    """Return the offsets in turn, for each picture."""
    side, offsets = (4, OFFSETS[2:3]) if quick else (8, OFFSETS)
    return Part(
        name="tiles_offsets",
        title="The grid moved",
        about=(
            f"{side} x {side} scenes in tiles of {CELL} pixels, overlap {OVERLAP}, lowest score {THRESHOLD}: the grid "
            "at the picture's corner, and the grid moved. An object changes if it is found once under one of the two "
            "only. It is at a seam if a tile of either grid cuts it."
        ),
        cells=[{"picture": picture, "side": side, "x": x, "y": y} for picture in PICTURES for x, y in offsets],
        shared=("picture", "side"),
        stage=staged,
        measure=measured,
        tables=tables,
    )


def measured(stage: Stage, *, x: int, y: int, **_: Any) -> list[Row]:
    """Find the objects under both grids, and count those that change."""
    kept = (x, y, stage.side, stage.side)
    things = [thing for thing in stage.scene.things if _lies_in(thing, kept)]
    first, second = (_under(stage, things, *offset) for offset in ((0, 0), (x, y)))
    seam = first[1] | second[1]
    changed = np.array([(a is Outcome.ONCE) != (b is Outcome.ONCE) for a, b in zip(first[0], second[0], strict=True)])
    return [
        {
            "at_seams": int(seam.sum()),
            "changed_at_seams": int(changed[seam].sum()),
            "elsewhere": int((~seam).sum()),
            "changed_elsewhere": int(changed[~seam].sum()),
        }
    ]


def _lies_in(thing: Thing, box: tuple[int, int, int, int]) -> bool:
    rows, columns = np.nonzero(thing.mask)
    return bool(columns.min() + thing.x >= box[0] and rows.min() + thing.y >= box[1])


def _under(stage: Stage, things: Sequence[Thing], x: int, y: int) -> tuple[list[Outcome], Any]:
    """Return what became of each object under a grid that begins at (x, y), and which ones the grid cuts."""
    pixels = np.ascontiguousarray(stage.scene.pixels[y:, x:])
    with Client(stage.url) as client:
        result = client.predict_tiled(
            pixels, tile=CELL, overlap=OVERLAP, concurrency=IN_FLIGHT, score_threshold=THRESHOLD
        )
    rects = [tile.rect for tile in grid(*pixels.shape[:2], tile=CELL, overlap=OVERLAP)]
    boxes = [(rect.x1 + x, rect.y1 + y, rect.x2 + x, rect.y2 + y) for rect in rects]
    cut = np.array([any(thing.cut_by(box) for box in boxes) for thing in things], np.bool_)
    return outcomes([_seen(thing, x, y, *pixels.shape[:2]) for thing in things], list(found(result))), cut


def _seen(thing: Thing, x: int, y: int, height: int, width: int) -> Found:
    """Return an object in a picture whose upper left pixel is (x, y) of the mosaic."""
    left, upper = max(0, x - thing.x), max(0, y - thing.y)
    mask = thing.mask[upper:, left:]
    return Found(0, thing.label, 1.0, placed(mask, thing.x + left - x, thing.y + upper - y, height, width))


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return a line for each picture and offset."""
    columns = ("picture", "x", "y", "at_seams", "changed_at_seams", "elsewhere", "changed_elsewhere")
    lines = [[row[name] for name in columns] for row in rows]
    return [Table("offsets", [name.replace("_", " ") for name in columns], lines)]
