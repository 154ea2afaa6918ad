"""The engine's outputs, in single precision."""

from m2f.half import single_precision
from m2f.settings import Settings
from m2f_backend.step import StepModel


class TritonPythonModel(StepModel):
    """inner_cls_logits, inner_mask_logits -> cls_logits, mask_logits."""

    def infer(self, arrays, parameters):
        Settings().override(parameters)  # a wrong parameter is an error whatever was asked for
        return {name: single_precision(arrays[f"inner_{name}"]) for name in ("cls_logits", "mask_logits")}
