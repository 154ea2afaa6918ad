"""Logits in half precision: an engine may send them, and a step converts only those that it reads."""

from __future__ import annotations

from typing import cast

import numpy as np

from m2f.geometry import Floats, Halves, Ints
from m2f.kernels import BEST, Kernel


def single_precision(logits: Floats | Halves, kernel: Kernel = BEST) -> Floats:
    """Return logits of any shape as float32, contiguous; float32 itself is not copied."""
    if logits.dtype == np.float16:
        return kernel.widen(cast(Halves, logits))
    return np.ascontiguousarray(logits, np.float32)


def of_queries(mask_logits: Floats | Halves, queries: Ints, kernel: Kernel) -> tuple[Floats, Ints]:
    """Return the mask logits of some queries in single precision.

    Args:
        mask_logits: float32 or float16 [Q, h, w].
        queries: int64 [N], each below Q.
        kernel: converts.

    Returns:
        float32 [Q or N, h, w], contiguous; and int64 [N], contiguous: the place of each query in it.
    """
    if mask_logits.dtype == np.float16:
        mask_logits, queries = mask_logits[queries], np.arange(len(queries))
    return single_precision(mask_logits, kernel), np.ascontiguousarray(queries, np.int64)
