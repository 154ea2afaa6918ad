"""m2f's own post-processing, kernel by kernel."""

from __future__ import annotations

from m2f.postprocess import Instances, postprocess

from .scenes import Case


def run(case: Case, kernel: str) -> Instances:
    """Post-process with one of `m2f.native.kernels`."""
    return postprocess(
        case.cls_logits,
        case.mask_logits,
        img_shape=case.img_shape,
        ori_shape=case.ori_shape,
        settings=case.settings,
        kernel=kernel,
    )
