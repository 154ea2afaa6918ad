"""Run 1/model.onnx on ONNX Runtime: the engine of `--model-config-name=cpu`."""

import numpy as np
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from m2f.errors import InputError
from m2f_backend.onnx_session import open_session
from m2f_backend.step import BatchedModel


class TritonPythonModel(BatchedModel):
    """input -> cls_logits, mask_logits."""

    def initialize(self, args):
        super().initialize(args)
        self.session = open_session(args, self.parameters)

    def infer(self, arrays):
        if arrays["input"].dtype == np.float32 and not np.isfinite(arrays["input"]).all():
            raise InputError("input must be finite; it holds NaN or infinity")
        try:
            cls_logits, mask_logits = self.session.run(["cls_logits", "mask_logits"], {"input": arrays["input"]})
        except InvalidArgument as error:  # for example an input size that the graph does not take
            raise InputError(str(error)) from error
        return {"cls_logits": cls_logits, "mask_logits": mask_logits}
