"""RLE -> masks of a bit a pixel."""

from m2f.batch import dense_masks
from m2f.limits import MAX_MASK_BYTES
from m2f.parameters import whole_number
from m2f_backend.step import StepModel


class TritonPythonModel(StepModel):
    """rle BYTES [N, K], size [N, 2] -> packed_masks UINT8 [N, K, H, ceil(W / 8)]."""

    def initialize(self, args):
        super().initialize(args)
        self.max_bytes = whole_number(self.parameters, "max_output_bytes", MAX_MASK_BYTES)

    def infer(self, arrays, _parameters):
        return {"packed_masks": dense_masks(arrays["rle"], arrays["size"], packed=True, max_bytes=self.max_bytes)}
