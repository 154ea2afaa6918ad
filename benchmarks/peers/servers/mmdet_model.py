"""mmdetection as its documentation calls it: `init_detector`, then `inference_detector` for each picture.

`mmdet_model.py expected FILE PICTURE ...` writes the answers of CONFIG and CHECKPOINT to FILE.
`mmdet_model.py official NAME SIDE FOLDER` writes one of mmdetection's configurations, and random weights for it.
"""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from picture import THRESHOLD, answer

from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()  # mmcv without compiled operators: on a processor Mask2Former uses none of them

from mmcv.transforms import Compose  # noqa: E402
from mmdet.apis import inference_detector, init_detector  # noqa: E402
from mmdet.utils import get_test_pipeline_cfg  # noqa: E402
from mmengine.hub import get_config  # noqa: E402


class Detector:
    """A detector on the processor, and its test pipeline, which `inference_detector` would build anew each time."""

    def __init__(self):
        torch.set_num_threads(int(os.environ["THREADS"]))
        self.model = init_detector(os.environ["CONFIG"], os.environ["CHECKPOINT"], device="cpu", palette="random")
        pipeline = get_test_pipeline_cfg(self.model.cfg)
        pipeline[0].type = "mmdet.LoadImageFromNDArray"
        self.pipeline = Compose(pipeline)

    def predict(self, encoded):
        """Return the answer; only instances that pass the threshold are encoded."""
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        result = inference_detector(self.model, image, test_pipeline=self.pipeline).pred_instances
        result = result[result.scores >= THRESHOLD]
        rows = zip(result.labels.tolist(), result.scores.tolist(), result.masks.numpy(), strict=True)
        return answer(list(rows), image.shape[:2])


def write_official(name, side, folder):
    """Write a configuration that mmdetection ships, for a square input, and random weights, which find nothing."""
    config = get_config(f"mmdet::{name}")
    config.model.backbone.init_cfg = None  # it would download ImageNet's weights
    config.model.data_preprocessor.pad_size_divisor = side
    config.test_pipeline[1].scale = (side, side)
    config.dump(folder / "config.py")
    torch.manual_seed(0)
    model = init_detector(config, None, device="cpu", palette="random")
    torch.save({"state_dict": model.state_dict(), "meta": {}}, folder / "weights.pth")


if __name__ == "__main__":
    what, target, *more = sys.argv[1:]
    if what == "official":
        write_official(target, int(more[0]), Path(more[1]))
    else:
        detector = Detector()
        Path(target).write_text(json.dumps([detector.predict(Path(picture).read_bytes()) for picture in more]))
