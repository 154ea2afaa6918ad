"""What MaskFormer needs beyond Mask2Former."""

from __future__ import annotations

import math
from pathlib import Path

DIVISOR = 32  # the coarsest feature map is at stride 32


def padded(divisor: int, file: Path) -> tuple[int, tuple[str, ...]]:
    """Return a multiple of 32 that images are padded to, and what to say of it.

    MaskFormer's official configurations in mmdetection and MMSegmentation do not pad images, and the networks take any
    size. The original MaskFormer pads to multiples of 32, as the server does.

    Args:
        divisor: what the configuration pads to.
        file: the configuration's file, for people.
    """
    if divisor % DIVISOR == 0:
        return divisor, ()
    wider = math.lcm(divisor, DIVISOR)
    stated = f"pads images to multiples of {divisor}" if divisor > 1 else "does not pad images"
    return wider, (f"{file} {stated}; the server pads them to multiples of {wider}, as the original MaskFormer does",)
