"""Logits -> a class for each pixel."""

from threadpoolctl import threadpool_limits

from m2f.batch import of_each_image
from m2f.label_maps import check_size, stack_maps
from m2f.limits import MAX_MAP_BYTES, MAX_PIXELS
from m2f.parameters import whole_number
from m2f.semantic import NO_CLASS, semantic, values_per_pixel
from m2f.settings import Settings
from m2f_backend.step import StepModel


class TritonPythonModel(StepModel):
    """cls_logits [N, Q, C+1], mask_logits [N, Q, h, w], img_shape, ori_shape [N, 2] -> semantic."""

    def initialize(self, args):
        threadpool_limits(1)  # concurrency comes from Triton's instances
        super().initialize(args)
        self.settings = Settings.from_repository(self.parameters)
        self.mask_stride = whole_number(self.parameters, "mask_stride", 4)
        self.max_pixels = whole_number(self.parameters, "max_pixels", MAX_PIXELS)
        self.max_bytes = whole_number(self.parameters, "max_output_bytes", MAX_MAP_BYTES)

    def infer(self, arrays, parameters):
        settings = self.settings.override(parameters)
        check_size("semantic", arrays["ori_shape"].tolist(), max_bytes=self.max_bytes)
        found = of_each_image(
            arrays,
            lambda image: semantic(image, settings),
            mask_stride=self.mask_stride,
            max_pixels=self.max_pixels,
            values=values_per_pixel,
        )
        return {"semantic": stack_maps(found, NO_CLASS)}
