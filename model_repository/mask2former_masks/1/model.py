"""RLE -> dense masks."""

from m2f.batch import dense_masks
from m2f.limits import MAX_MASK_BYTES
from m2f.settings import whole_number
from m2f_backend.step import Step


class TritonPythonModel:
    """rle BYTES [N, K], size [N, 2] -> masks UINT8 [N, K, H, W]."""

    def initialize(self, args):
        self.step = Step(args)
        self.max_bytes = whole_number(self.step.parameters, "max_output_bytes", MAX_MASK_BYTES)

    def finalize(self):
        self.step.close()

    def execute(self, requests):
        return [self.step.respond(request, self.infer) for request in requests]

    def infer(self, arrays, _parameters):
        return {"masks": dense_masks(arrays["rle"], arrays["size"], max_bytes=self.max_bytes)}
