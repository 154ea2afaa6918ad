"""Run 1/model.onnx: the engine of `--model-config-name=cpu`, on OpenVINO or ONNX Runtime, and of `gpu`."""

import numpy as np

from m2f.errors import InputError
from m2f_backend.engines import open_engine
from m2f_backend.step import BatchedModel


class TritonPythonModel(BatchedModel):
    """input -> cls_logits, mask_logits."""

    def initialize(self, args):
        super().initialize(args)
        self.engine, facts = open_engine(args, self.parameters, self.warn)
        self.loaded(facts)

    def infer(self, arrays):
        if arrays["input"].dtype == np.float32 and not np.isfinite(arrays["input"]).all():
            raise InputError("input must be finite; it holds NaN or infinity")
        return self.engine.run(arrays)
