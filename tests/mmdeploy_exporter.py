"""MMDeploy's own exporter, on the embedded model."""

import functools
import json
import logging
import os

import pytest
from deploy_configs import DEPLOY
from sources import CHECKPOINT, CONFIG, ROOT


def mmdeploy_export(folder, backend):
    """Let `mmdeploy.apis.torch2onnx` export the embedded model: full-size masks, float input, opset 13."""
    from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

    ensure_mmcv_ops()
    import torch
    from mmdeploy.apis import torch2onnx
    from mmengine.config import Config

    deploy = json.loads(json.dumps(DEPLOY))
    deploy["backend_config"]["type"] = backend
    axes = deploy["onnx_config"]["dynamic_axes"]  # JSON knows no integer keys
    deploy["onnx_config"]["dynamic_axes"] = {t: {int(axis): name for axis, name in a.items()} for t, a in axes.items()}
    image = ROOT / "examples/images/scene_1.jpg"
    with pytest.MonkeyPatch.context() as patch:
        # MMDeploy 1.3.1 is older than the exporter that torch now takes by default, and than `weights_only`
        patch.setattr(torch.onnx, "export", functools.partial(torch.onnx.export, dynamo=False))
        patch.setattr("mmdeploy.apis.utils.utils.check_backend_device", lambda **_: None)  # TensorRT, but no GPU here
        patch.setitem(os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        logging.disable(logging.WARNING)
        torch2onnx(str(image), str(folder), "end2end.onnx", Config(deploy), str(CONFIG), str(CHECKPOINT), device="cpu")
        logging.disable(logging.NOTSET)
    return folder / "end2end.onnx"
