"""What cannot be avoided: every logit of the kept queries is read, every pixel inside a mask has its sigmoid."""

from __future__ import annotations

import torch

from m2f.postprocess import Instances

from .scenes import Case

_CHUNK = 1 << 13  # input and output stay in the first-level cache


class Floor:
    """The least work for one case, done by the fastest vector code at hand: numpy's maximum and PyTorch's sigmoid.

    Attributes:
        queries: whose logits are read.
        pixels: how many sigmoids, a mask that several instances share counted once.
    """

    def __init__(self, case: Case, instances: Instances) -> None:
        areas = dict(zip(instances.queries.tolist(), instances.areas.tolist(), strict=True))
        self.queries = sorted(areas)
        self.pixels = sum(areas.values())
        self._mask_logits = case.mask_logits
        self._values, self._out = torch.linspace(0, 8, _CHUNK), torch.empty(_CHUNK)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Do it once."""
        for query in self.queries:
            self._mask_logits[query].max()
        for begin in range(0, self.pixels, _CHUNK):
            count = min(_CHUNK, self.pixels - begin)
            torch.sigmoid(self._values[:count], out=self._out[:count])
