"""Pictures of any size whose objects are known: held-out scenes of the embedded model, side by side.

Each scene is cut to a square and resized to 256 x 256, the size of the network. So an object is as large in the mosaic
as in its scene, and what tiles find can be compared with what the scenes by themselves give.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
CELL = 256  # side of the network's input, and of a scene in the mosaic
SEED, HELD_OUT = 7, 1  # as `examples/shapes/generate.py --seed 7` draws pictures that the model was not trained on

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Thing:
    """An object of a mosaic.

    Attributes:
        cell: number of its scene.
        label: class index.
        mask: bool [256, 256], in its scene.
        x: column of the scene's left edge in the mosaic.
        y: row of the scene's upper edge in the mosaic.
    """

    cell: int
    label: int
    mask: Mask
    x: int
    y: int

    def cut_by(self, box: Box) -> bool:
        """Return whether a box of the mosaic has a part of the object, but not all of it."""
        x1, y1, x2, y2 = (max(0, edge - start) for edge, start in zip(box, (self.x, self.y) * 2, strict=True))
        inside = int(self.mask[y1:y2, x1:x2].sum())
        return 0 < inside < int(self.mask.sum())


@dataclass(frozen=True)
class Mosaic:
    """A square of scenes.

    Attributes:
        side: scenes a side.
        scenes: uint8 [256, 256, 3] RGB, row by row.
        things: the objects of all scenes.
    """

    side: int
    scenes: Sequence[Pixels]
    things: Sequence[Thing]

    @cached_property
    def pixels(self) -> Pixels:
        """The mosaic, uint8 [256 x side, 256 x side, 3] RGB."""
        rows = (np.hstack(self.scenes[start : start + self.side]) for start in range(0, self.side**2, self.side))
        return np.vstack(list(rows))

    def at_seams(self, boxes: Sequence[Box]) -> npt.NDArray[np.bool_]:
        """Return which objects are cut by the edge of a tile.

        Args:
            boxes: the tiles, x1 y1 x2 y2.
        """
        return np.array([any(thing.cut_by(box) for box in boxes) for thing in self.things], np.bool_)


def mosaic(side: int) -> Mosaic:
    """Return the first side x side held-out scenes as one picture; the same ones at each call."""
    scenes, things = [], []
    for number, (scene, labels, masks) in zip(range(side**2), held_out(), strict=False):
        y, x = (CELL * place for place in divmod(number, side))
        scenes.append(scene)
        things += [Thing(number, label, mask, x, y) for label, mask in zip(labels, masks, strict=True) if mask.any()]
    return Mosaic(side, scenes, things)


def held_out() -> Iterator[tuple[Pixels, Sequence[int], Sequence[Mask]]]:
    """Draw scenes without end: uint8 [256, 256, 3] RGB, class indices, and a mask [256, 256] for each object."""
    drawing = scenes_module()
    number = 0
    while True:
        image, labels, masks = drawing.make_scene(np.random.default_rng((SEED, HELD_OUT, number)))
        whole = [_square(mask.astype(np.uint8) * 255) > 127 for mask in masks]
        yield _square(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)), [int(label) for label in labels], whole
        number += 1


@cache
def scenes_module() -> ModuleType:
    """Return the module that draws the scenes that the embedded model was trained on."""
    spec = importlib.util.spec_from_file_location("examples_shapes_scenes", ROOT / "examples/shapes/scenes.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def _square(image: Any) -> Any:
    height, width = image.shape[:2]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    return cv2.resize(image[y : y + side, x : x + side], (CELL, CELL), interpolation=cv2.INTER_LINEAR)
