"""Every official configuration at its full size, with random weights. Heavy: `make test-official`."""

from pathlib import Path

import numpy as np
import pytest
from sources import random_checkpoint

pytestmark = [pytest.mark.official, pytest.mark.torch, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]

CONFIGS = [
    "mask2former_r50_8xb2-lsj-50e_coco",
    "mask2former_r50_8xb2-lsj-50e_coco-panoptic",
    "mask2former_r101_8xb2-lsj-50e_coco",
    "mask2former_r101_8xb2-lsj-50e_coco-panoptic",
    "mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco",
    "mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic",
    "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco",
    "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco-panoptic",
    "mask2former_swin-b-p4-w12-384_8xb2-lsj-50e_coco-panoptic",
    "mask2former_swin-b-p4-w12-384-in21k_8xb2-lsj-50e_coco-panoptic",
    "mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic",
    "maskformer_r50_ms-16xb1-75e_coco",
    "maskformer_swin-l-p4-w12_64xb1-ms-300e_coco",
]
END_TO_END = {CONFIGS[0], CONFIGS[4]}  # R50, Swin-T: to a repository, through Triton, with the head


def official(name, folder):
    """Write a configuration that is the official one, but for weights to fetch and the size of the test images."""
    path = folder / f"{name}.py"
    path.write_text(f"""
_base_ = ["mmdet::{name.partition("_")[0]}/{name}.py"]
model = dict(backbone=dict(init_cfg=None))
test_dataloader = dict(dataset=dict(pipeline=[dict(type="Resize", scale=(512, 320), keep_ratio=True)]))
""")
    return path


def test_the_list_is_complete():
    import mmdet

    configs = Path(mmdet.__file__).parent / ".mim/configs"
    folders = [configs / name for name in ("mask2former", "maskformer")]
    assert {path.stem for folder in folders for path in folder.glob("*.py")} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_exports(name, tmp_path):
    """Each step of an export holds: the difference to PyTorch, batches against one by one."""
    from m2f_export.pipeline import ExportRequest, export_graph, export_repository

    config = official(name, tmp_path)
    head = "stride4" if name in END_TO_END else None
    request = ExportRequest(model=config, weights=random_checkpoint(config), head=head)
    make, target = (export_repository, "mine") if name in END_TO_END else (export_graph, "model.onnx")
    report = make(request, tmp_path / target, print)
    steps = {step["name"]: step for step in report["comparison"]["steps"]}
    assert max(steps["ONNX Runtime"]["cls_mean"], steps["ONNX Runtime"]["mask_mean"]) <= 1e-5
    assert len(report["class_names"]) == report["classes"] in (80, 133)
    assert ("Triton" in steps) == (name in END_TO_END)
    assert all(np.isfinite(step["mask_mean"]) for step in steps.values())
    print(report["steps"])
