"""Logits with the sizes, shapes and duplicates that a COCO model gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from m2f.settings import Settings

ROOT = Path(__file__).resolve().parents[2]

STRIDE = 4
CELLS = (200, 336)  # the masks of an 800 x 1344 input
OUTPUTS = ((427, 640), (480, 640), (800, 1333), (1080, 1920))

# Square root of an instance's area in a picture of 480 x 640: 41 % are below 32 pixels, 76 % below 96
# (https://cocodataset.org/#detection-eval); a log-normal through both.
_SIDES = NormalDist(mu=3.736, sigma=1.188)
_COCO_SIDE = (480 * 640) ** 0.5
_SMALLEST, _LARGEST = 0.015, 0.75  # of the picture's own side; smaller ones are less than the cells can show

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Logits of one image and what is asked of them.

    Attributes:
        name: for people.
        cls_logits: float32 [Q, C+1].
        mask_logits: float32 [Q, h, w] at stride 4.
        img_shape, ori_shape: as `m2f.postprocess.postprocess`.
        settings: threshold and top k.
    """

    name: str
    cls_logits: Floats
    mask_logits: Floats
    img_shape: Size
    ori_shape: Size
    settings: Settings

    @property
    def shapes(self) -> dict[str, Size]:
        """The two sizes, as keywords."""
        return {"img_shape": self.img_shape, "ori_shape": self.ori_shape}

    @property
    def padded(self) -> Size:
        """Height and width of the network's input."""
        return STRIDE * self.mask_logits.shape[1], STRIDE * self.mask_logits.shape[2]


def synthetic(
    objects: int,
    output: Size,
    *,
    threshold: float = 0.5,
    queries: int = 100,
    classes: int = 80,
    side_scale: float = 1.0,
    seed: int = 0,
) -> Case:
    """Return a scene of irregular objects; the first `objects` queries hold one each, the others poor duplicates.

    Args:
        objects: how many pass the threshold of 0.5.
        output: height and width of the original image.
        threshold: 0 keeps the best 100 query-class pairs, as mmdetection itself does.
        queries: of the model.
        classes: of the model, without no-object.
        side_scale: 1: objects as large as COCO's, relative to the picture; sizes are the quantiles of their
            distribution, so that the mean area hardly depends on how many there are.
        seed: of everything that is random.
    """
    rng = np.random.default_rng(seed)
    img_shape = _keep_ratio(output)
    sides = rng.permutation(_object_sides(objects, side_scale))
    cls_logits = rng.normal(0, 1, (queries, classes + 1)).astype(np.float32)
    cls_logits[objects:, -1] += 6
    cls_logits[np.arange(objects), rng.integers(0, classes, objects)] += 14
    shapes = [_Blob.random(rng, side) for side in sides]
    # a query that won no object marks a neighbourhood of one, and less surely
    shapes += [shapes[rng.integers(objects)].jittered(rng) for _ in range(queries - objects)]
    mask_logits = np.stack([shape.logits(img_shape) for shape in shapes])
    mask_logits += rng.normal(0, 0.3, mask_logits.shape).astype(np.float32)
    size = "" if side_scale == 1 else f" {side_scale:g}x as wide"
    asked = f"{objects} objects{size}" if threshold > 0 else f"{objects} objects{size}, 100 detections"
    return Case(
        name=f"{asked}, {output[0]}x{output[1]}",
        cls_logits=cls_logits,
        mask_logits=mask_logits,
        img_shape=img_shape,
        ori_shape=output,
        settings=Settings(score_threshold=threshold),
    )


def _keep_ratio(output: Size) -> Size:
    """What mmdetection's `Resize(scale=(1333, 800), keep_ratio=True)` makes of the image."""
    scale = min(1333 / max(output), 800 / min(output))
    return int(output[0] * scale + 0.5), int(output[1] * scale + 0.5)


def _object_sides(count: int, scale: float) -> Doubles:
    """Square roots of the areas of `count` objects, relative to the square root of the picture's."""
    quantiles = [_SIDES.inv_cdf((i + 0.5) / count) for i in range(count)]
    return np.clip(scale * np.exp(quantiles) / _COCO_SIDE, _SMALLEST, _LARGEST)


@dataclass(frozen=True, kw_only=True)
class _Blob:
    """A star-shaped object.

    Attributes:
        centre: y, x relative to the picture.
        side: square root of its area, relative to the picture's.
        aspect: height over width.
        waves: amplitude and phase of each harmonic of its outline, [3, 2].
        certainty: its largest logit.
    """

    centre: Doubles
    side: float
    aspect: float
    waves: Doubles
    certainty: float

    @classmethod
    def random(cls, rng: np.random.Generator, side: float) -> _Blob:
        margin = min(0.5, side / 2)  # most of it lies in the picture
        waves = np.stack([rng.uniform(0, 0.12, 3), rng.uniform(0, 2 * np.pi, 3)], axis=1)
        return cls(
            centre=rng.uniform(margin, 1 - margin, 2),
            side=side,
            aspect=float(np.exp(rng.normal(0, 0.3))),
            waves=waves,
            certainty=8.0,
        )

    def jittered(self, rng: np.random.Generator) -> _Blob:
        return _Blob(
            centre=self.centre + rng.normal(0, 0.2 * self.side, 2),
            side=self.side * float(np.exp(rng.normal(0, 0.2))),
            aspect=self.aspect,
            waves=self.waves,
            certainty=2.0,
        )

    def logits(self, img_shape: Size) -> Floats:
        """Logits [h, w], sloped over a few cells at the outline."""
        side = self.side * (img_shape[0] * img_shape[1]) ** 0.5 / STRIDE  # in cells
        y = (np.arange(CELLS[0]) + 0.5 - self.centre[0] * img_shape[0] / STRIDE) / self.aspect**0.5
        x = (np.arange(CELLS[1]) + 0.5 - self.centre[1] * img_shape[1] / STRIDE) * self.aspect**0.5
        angle = np.arctan2(y[:, None], x[None])
        outline = 1 + sum(a * np.cos((k + 2) * angle + phase) for k, (a, phase) in enumerate(self.waves))
        distance = side / np.pi**0.5 * outline - np.hypot(y[:, None], x[None])
        return np.clip(2.5 * distance, -10, self.certainty).astype(np.float32)
