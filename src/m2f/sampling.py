"""What sampling masks returns, and the budget that it draws on; shared by every kernel."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError
from m2f.limits import WORK_LIMITS, WorkLimits

Edges = npt.NDArray[np.uint32]  # where runs of ones start and end, in turn, down the columns
Records = npt.NDArray[np.void]  # of RECORD, one for each mask
RECORD = np.dtype([("area", np.int64), ("num_edges", np.int64), ("sigmoid_sum", np.float64), ("box", np.int32, 4)])


class Budget:
    """What the masks of an image may still take; shared by the threads that sample them.

    Attributes:
        edges: how many more edges the masks may have.
        doubts: how many more pixels may lie so close to 0 that rounding decides them (`interpolate.doubtful`).
    """

    def __init__(self, limits: WorkLimits = WORK_LIMITS) -> None:
        self.edges, self.doubts = limits.edges, limits.doubts
        self._limits = limits
        self._lock = threading.Lock()

    def take(self, *, edges: int = 0, doubts: int = 0) -> None:
        """Subtract what was found.

        Raises:
            InputError: the masks have more edges or more doubtful pixels than the limits allow.
        """
        with self._lock:
            self.edges -= edges
            self.doubts -= doubts
        self._check(self.edges, self._limits.edges, "edges")
        self._check(self.doubts, self._limits.doubts, "pixels whose logit is within rounding of 0")

    @staticmethod
    def _check(left: int, allowed: int, what: str) -> None:
        if left < 0:
            raise InputError(
                f"the masks of an image have at least {allowed - left} {what}; allowed are {allowed}: lower "
                "'pre_top_k', or raise 'score_threshold'",
                kind="output_too_large",
            )
