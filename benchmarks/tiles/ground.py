"""A large picture of the embedded model's kind: held-out objects on one ground, without borders between its scenes.

A mosaic of pictures has straight borders, whose corners look like the model's squares and triangles to a tile that lies
across them. A real large picture has none. Here the grounds of the scenes blend, and each object lies in its scene, so
the scenes by themselves are still pictures with all their objects.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt

from .mosaic import CELL, HELD_OUT, SEED, Mask, Mosaic, Pixels, Thing, scenes_module

_BLEND = CELL // 4  # pixels on each side of a border over which two grounds blend
_GRAIN = 4.0  # standard deviation of the noise of a sensor

Floats = npt.NDArray[np.float32]


def one_ground(side: int) -> Mosaic:
    """Return side x side scenes whose grounds blend into one picture; the same ones at each call."""
    drawing = scenes_module()
    rng = np.random.default_rng((SEED, HELD_OUT, side))
    picture = _ground(drawing, rng, side)
    things: list[Thing] = []
    for cell in range(side**2):
        y, x = (CELL * place for place in divmod(cell, side))
        labels, masks = _draw(drawing, rng, picture[y : y + CELL, x : x + CELL])
        things += [Thing(cell, label, mask, x, y) for label, mask in zip(labels, masks, strict=True)]
    picture += rng.standard_normal((*picture.shape[:2], 1), np.float32) * _GRAIN
    pixels: Pixels = np.clip(np.round(picture), 0, 255).astype(np.uint8)[..., ::-1]
    rows = pixels.reshape(side, CELL, side, CELL, 3).swapaxes(1, 2).reshape(-1, CELL, CELL, 3)
    return Mosaic(side, [np.ascontiguousarray(scene) for scene in rows], things)


def _ground(drawing: ModuleType, rng: np.random.Generator, side: int) -> Floats:
    """Paint the grounds of all scenes, each weighted by how far inside it a pixel is: [256 side, 256 side, 3] BGR."""
    width = CELL + 2 * _BLEND
    ramp = np.clip((np.arange(width, dtype=np.float32) + 0.5) / (2 * _BLEND), 0, 1)
    inside = np.minimum(ramp, ramp[::-1])
    weight = (inside[:, None] * inside)[..., None]
    total = np.zeros((side * CELL + 2 * _BLEND,) * 2 + (3,), np.float32)
    weights = np.zeros_like(total[..., :1])
    for row, column in np.ndindex(side, side):
        part = np.s_[row * CELL : row * CELL + width, column * CELL : column * CELL + width]
        total[part] += weight * drawing.background(rng, (width, width))
        weights[part] += weight
    shown = np.s_[_BLEND:-_BLEND, _BLEND:-_BLEND]
    return total[shown] / weights[shown]


def _draw(drawing: ModuleType, rng: np.random.Generator, scene: Floats) -> tuple[list[int], list[Mask]]:
    """Draw objects that lie in a scene onto it; return their classes and visible masks."""
    shapes, masks = [], []
    for shape in drawing.scatter(rng, scene.shape[:2])[0]:
        border = np.concatenate([shape.alpha[[0, -1]].ravel(), shape.alpha[:, [0, -1]].ravel()])
        placed = None if border.any() else drawing.place(shapes, masks, shape)
        if placed is not None:
            shapes, masks = [*shapes, shape], placed
    drawing.paint(rng, scene, shapes, drawing.fill, rng.choice([0, 0.5, 1]))
    return [shape.label for shape in shapes], masks
