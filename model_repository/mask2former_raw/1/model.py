"""The engine's outputs, unchanged."""

from m2f.settings import Settings
from m2f_backend.step import StepModel


class TritonPythonModel(StepModel):
    """inner_cls_logits, inner_mask_logits -> cls_logits, mask_logits."""

    def infer(self, arrays, parameters):
        Settings().override(parameters)  # a wrong parameter is an error whatever was asked for
        return {"cls_logits": arrays["inner_cls_logits"], "mask_logits": arrays["inner_mask_logits"]}
