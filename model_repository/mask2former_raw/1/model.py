"""The engine's outputs, unchanged."""

from m2f.settings import Settings
from m2f_backend.step import Step


class TritonPythonModel:
    """inner_cls_logits, inner_mask_logits -> cls_logits, mask_logits."""

    def initialize(self, args):
        self.step = Step(args)

    def finalize(self):
        self.step.close()

    def execute(self, requests):
        return [self.step.respond(request, self.infer) for request in requests]

    def infer(self, arrays, parameters):
        Settings().override(parameters)  # a wrong parameter is an error whatever was asked for
        return {"cls_logits": arrays["inner_cls_logits"], "mask_logits": arrays["inner_mask_logits"]}
