"""RLE -> dense masks, of a byte or a bit per pixel."""

from functools import partial

from m2f.batch import dense_masks
from m2f.limits import MAX_MASK_BYTES
from m2f.parameters import whole_number
from m2f_backend.step import StepModel


class TritonPythonModel(StepModel):
    """rle BYTES [N, K], size [N, 2] -> masks UINT8 [N, K, H, W] or packed_masks UINT8 [N, K, H, ceil(W / 8)]."""

    def initialize(self, args):
        super().initialize(args)
        self.max_bytes = whole_number(self.parameters, "max_output_bytes", MAX_MASK_BYTES)

    def infer(self, arrays, _parameters):
        make = partial(dense_masks, arrays["rle"], arrays["size"], max_bytes=self.max_bytes)
        return {"masks": make, "packed_masks": partial(make, packed=True)}
