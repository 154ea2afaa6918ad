"""m2f's own post-processing, kernel by kernel."""

from __future__ import annotations

from m2f.kernels import Kernel
from m2f.logits import ImageLogits
from m2f.postprocess import Instances, postprocess

from .scenes import Case


def run(case: Case, kernel: Kernel) -> Instances:
    """Post-process with one of `m2f.kernels.KERNELS`."""
    return postprocess(ImageLogits(case.cls_logits, case.mask_logits, **case.shapes), case.settings, kernel=kernel)
