"""Queries' masks, straight from their logits to runs of pixels: area, box, score and RLE.

The dense masks are never made: `NumpyOperator.sample` and kernel/masks.c say how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError
from m2f.geometry import Floats, Halves, Ints, SizeHW
from m2f.kernels import Kernel, Operator
from m2f.limits import WORK_LIMITS, WorkLimits
from m2f.sampling import Budget, Edges, Records


@dataclass(frozen=True, kw_only=True)
class Masks:
    """N full-size binary masks of one image.

    Attributes:
        areas: int64 [N], pixels inside.
        boxes: int32 [N, 4], x1, y1, x2, y2, half-open; zeros for an empty mask.
        scores: float64 [N], mean sigmoid(logit) over the mask's pixels, with mmdetection's epsilon. Always finite:
            mmdetection's score is NaN if a pixel outside the mask is NaN, and NaN can be neither sorted nor served.
        size_hw: (height, width) of the image.
        kernel: encodes and compares the masks.
    """

    areas: Ints
    boxes: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float64]
    size_hw: SizeHW
    kernel: Kernel
    _edges: Edges = field(repr=False)
    _offsets: Ints = field(repr=False)

    def __len__(self) -> int:
        return len(self.areas)

    @property
    def num_edges(self) -> Ints:
        """Number of edges of each mask, int64 [N]."""
        return np.diff(self._offsets)

    def edges(self, index: int) -> Edges:
        """Return where the runs of ones of a mask start and end, in turn, down the columns: uint32 [2 R], ascending."""
        return self._edges[self._offsets[index] : self._offsets[index + 1]]

    def rle(self, index: int) -> bytes:
        """Return the COCO compressed RLE `counts` of a mask."""
        height, width = self.size_hw
        return self.kernel.encode(self.edges(index), height * width)

    def intersection(self, first: int, second: int) -> int:
        """Return the number of pixels inside both masks."""
        return self.kernel.intersection(self.edges(first), self.edges(second))

    def iou(self, first: int, second: int) -> float:
        """Return the intersection over union of two masks; 0 if either is empty."""
        if not _boxes_meet(self.boxes[first], self.boxes[second]):
            return 0.0
        shared = self.intersection(first, second)
        return shared / int(self.areas[first] + self.areas[second] - shared)


def sample_masks(
    mask_logits: Floats | Halves, queries: Ints, operator: Operator, *, kernel: Kernel, limits: WorkLimits = WORK_LIMITS
) -> Masks:
    """Threshold the logits of some queries at 0, at the image's size.

    Args:
        mask_logits: float32 or float16 [Q, h, w].
        queries: int64 [N].
        operator: operator from cells to pixels, made by `kernel`.
        kernel: its `threads` share the queries; it encodes and compares the masks.
        limits: most edges and doubtful pixels that all masks may have.

    Raises:
        InputError: the logits are not of the operator's size, a query does not exist, or the masks exceed a limit.
    """
    if mask_logits.shape[1:] != operator.cells:
        raise InputError(f"mask logits are {mask_logits.shape[1:]}; expected {operator.cells}")
    if len(queries) and not 0 <= queries.min() <= queries.max() < len(mask_logits):
        raise InputError(f"queries must lie within 0 and {len(mask_logits) - 1}; got {queries.tolist()}")
    logits = np.ascontiguousarray(mask_logits, None if mask_logits.dtype == np.float16 else np.float32)
    parts = [np.ascontiguousarray(queries, np.int64)]
    run: Callable[..., Iterable[tuple[Records, Edges]]] = map
    if kernel.threads > 1:
        parts, run = np.array_split(parts[0], kernel.threads), _pool(kernel.threads).map
    budget = Budget(limits)
    records, edges = zip(*run(lambda part: operator.sample(logits, part, budget), parts), strict=True)
    found = np.concatenate(records)
    areas = found["area"]
    return Masks(
        areas=areas,
        boxes=found["box"],
        scores=found["sigmoid_sum"] / (areas + 1e-6),
        size_hw=operator.original,
        kernel=kernel,
        _edges=edges[0] if len(edges) == 1 else np.concatenate(edges),
        _offsets=np.concatenate([[0], np.cumsum(found["num_edges"])]),
    )


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="m2f")


def _boxes_meet(first: npt.NDArray[np.int32], second: npt.NDArray[np.int32]) -> bool:
    return bool((np.maximum(first[:2], second[:2]) < np.minimum(first[2:], second[2:])).all())
