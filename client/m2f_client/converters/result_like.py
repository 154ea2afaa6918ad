"""What the converters read of a result: a protocol, so that imports go one way, from `m2f_client.result` to here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from m2f.runs import Runs
from m2f_client.answer import Array


class ResultLike(Protocol):
    """The part of `m2f_client.Result` that the converters use; see there."""

    @property
    def outputs(self) -> Mapping[str, Array]:
        """Arrays by output name."""

    @property
    def scores(self) -> Array:
        """float32 [K]."""

    @property
    def labels(self) -> Array:
        """int32 [K]."""

    @property
    def boxes(self) -> Array:
        """float32 [K, 4], x1 y1 x2 y2."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""

    @property
    def has_masks(self) -> bool:
        """Whether there are masks."""

    @property
    def masks(self) -> npt.NDArray[np.uint8]:
        """uint8 [K, H, W]."""

    def __len__(self) -> int: ...
    def mask(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one mask, uint8 [H, W]."""

    def crop(self, index: int) -> tuple[int, int, npt.NDArray[np.uint8]]:
        """Return x and y of the upper left pixel of a mask's box, and the mask there, uint8 [h, w]."""

    def runs(self, index: int) -> Runs:
        """Return one mask as runs of pixels."""

    def names(self, class_names: Sequence[str] | None) -> list[str]:
        """Return K class names."""
