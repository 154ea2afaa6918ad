"""What MaskFormer needs beyond Mask2Former."""

from __future__ import annotations

import math
from pathlib import Path

DIVISOR = 32  # the coarsest feature map is at stride 32


def padded(divisor: int, file: Path) -> tuple[int, tuple[str, ...]]:
    """Return a multiple of 32 that images are padded to, and what to say of it.

    Official configurations of MaskFormer do not pad images: those of mmdetection and MMSegmentation, and the original's
    for COCO. Such a network takes any size. The server pads to multiples of 32.

    Args:
        divisor: what the configuration pads to.
        file: the configuration's file, for people.
    """
    if divisor % DIVISOR == 0:
        return divisor, ()
    wider = math.lcm(divisor, DIVISOR)
    stated = f"pads images to multiples of {divisor}" if divisor > 1 else "does not pad images"
    return wider, (f"{file} {stated}; the server pads them to multiples of {wider}",)
