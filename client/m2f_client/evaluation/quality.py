"""Panoptic quality: Kirillov et al., "Panoptic Segmentation" (CVPR 2019), by the rules of cocodataset/panopticapi.

A true segment is found if a segment of the same class overlaps it with an IoU above 0.5; at most one can. Per class:

    PQ = sum of the IoUs of the found segments / (found + false / 2 + missed / 2)
    SQ = mean IoU of the found segments
    RQ = PQ / SQ
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from m2f_client.evaluation.fields import InvalidDataset

Ids = npt.NDArray[np.int32]
Segments = Sequence[Mapping[str, Any]]

VOID = 0
_MOST_IDS = 1 << 24  # a panoptic PNG has three bytes for an id


@dataclass
class Counts:
    """Segments of one class.

    Attributes:
        iou: sum of the IoUs of the found segments.
        found: number of true segments that were found.
        false: number of the model's segments that match no true segment.
        missed: number of true segments that were not found.
    """

    iou: float = 0.0
    found: int = 0
    false: int = 0
    missed: int = 0

    def add(self, other: Counts) -> None:
        """Add the segments of another image."""
        self.iou += other.iou
        self.found += other.found
        self.false += other.false
        self.missed += other.missed


@dataclass(frozen=True)
class Quality:
    """PQ, SQ and RQ, 0 to 1; None without segments."""

    pq: float | None
    sq: float | None
    rq: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON has them."""
        return {"PQ": self.pq, "SQ": self.sq, "RQ": self.rq}


def read_ids(path: Path, size: tuple[int, int]) -> Ids:
    """Return the segment of each pixel of a panoptic PNG, int32 [H, W]: R + 256 G + 256^2 B (panopticapi's `rgb2id`).

    Args:
        path: the PNG.
        size: height and width of its image; another size is refused before any pixel is decoded.

    Raises:
        InvalidDataset: the PNG cannot be read, or has another size.
    """
    try:
        with PillowImage.open(path, formats=["PNG"]) as image:
            if (image.height, image.width) != size:
                raise InvalidDataset(
                    f"{path} is {image.width}x{image.height}, another size than its image, {size[1]}x{size[0]}"
                )
            pixels = np.asarray(image.convert("RGB"))
    except InvalidDataset:
        raise
    except Exception as error:  # Pillow raises whatever its parsers meet
        raise InvalidDataset(f"{path} cannot be read as PNG: {error}") from error
    red, green, blue = np.moveaxis(pixels.astype(np.int32), 2, 0)
    return red + 256 * green + 256**2 * blue


def count_image(truth: Ids, truth_segments: Segments, found: Ids, found_segments: Segments) -> dict[int, Counts]:
    """Count the segments of one image, by category id.

    Void pixels are left out of every union. A segment of the model is not counted as false if more than half of its
    pixels are void or in crowds of its class. Crowds are neither found nor missed.

    Args:
        truth: true segment id of each pixel, [H, W]; 0 is void.
        truth_segments: true segments: dicts with `id`, `category_id` and `iscrowd`.
        found: the model's segment id of each pixel, [H, W].
        found_segments: the model's segments: dicts with `id` and `category_id`.
    """
    overlap, area = _overlap(truth, found)
    counts: defaultdict[int, Counts] = defaultdict(Counts)
    matched = set()
    for one, other in product(truth_segments, found_segments):
        n = overlap[one["id"], other["id"]]
        if not n or one["iscrowd"] or one["category_id"] != other["category_id"]:
            continue
        void = overlap[VOID, other["id"]]
        iou = n / (area["found", other["id"]] + area["truth", one["id"]] - n - void)
        if iou > 0.5:
            counts[one["category_id"]].add(Counts(iou=iou, found=1))
            matched |= {("truth", one["id"]), ("found", other["id"])}
    for one in truth_segments:
        if not one["iscrowd"] and ("truth", one["id"]) not in matched:
            counts[one["category_id"]].missed += 1
    for other in found_segments:
        crowds = [s["id"] for s in truth_segments if s["iscrowd"] and s["category_id"] == other["category_id"]]
        unjudged = sum(overlap[true_id, other["id"]] for true_id in (VOID, *crowds))
        if ("found", other["id"]) not in matched and unjudged <= 0.5 * area["found", other["id"]]:
            counts[other["category_id"]].false += 1
    return dict(counts)


def _overlap(truth: Ids, found: Ids) -> tuple[Counter[tuple[int, int]], Counter[tuple[str, int]]]:
    """Return the number of pixels of each pair of segments, and of each segment."""
    pairs, pixels = np.unique(truth.astype(np.int64) * _MOST_IDS + found, return_counts=True)
    overlap = Counter({divmod(pair, _MOST_IDS): n for pair, n in zip(pairs.tolist(), pixels.tolist(), strict=True)})
    area: Counter[tuple[str, int]] = Counter()
    for (true_id, found_id), n in overlap.items():
        area.update({("truth", true_id): n, ("found", found_id): n})
    return overlap, area


def total(images: Iterable[Mapping[int, Counts]]) -> dict[int, Counts]:
    """Add up the counts of several images."""
    sums: dict[int, Counts] = {}
    for image in images:
        for category, counts in image.items():
            sums.setdefault(category, Counts()).add(counts)
    return sums


def quality(counts: Counts | None) -> Quality:
    """Return the quality of one class."""
    if counts is None or not (counts.found or counts.false or counts.missed):
        return Quality(None, None, None)
    segments = counts.found + 0.5 * counts.false + 0.5 * counts.missed
    mean_iou = counts.iou / counts.found if counts.found else 0.0
    return Quality(counts.iou / segments, mean_iou, counts.found / segments)


def mean(classes: Iterable[Quality]) -> Quality:
    """Return the mean over the classes that have segments."""
    present = [(c.pq, c.sq, c.rq) for c in classes if c.pq is not None]
    if not present:
        return Quality(None, None, None)
    return Quality(*(float(np.mean(values)) for values in zip(*present, strict=True)))
