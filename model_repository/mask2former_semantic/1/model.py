"""Logits -> a class for each pixel."""

from threadpoolctl import threadpool_limits

from m2f.batch import image_shapes
from m2f.label_maps import check_size, stack_maps
from m2f.semantic import NO_CLASS, semantic
from m2f.settings import Settings, whole_number
from m2f_server.glue import repository_parameters, respond


class TritonPythonModel:
    """cls_logits [N, Q, C+1], mask_logits [N, Q, h, w], img_shape, ori_shape [N, 2] -> semantic."""

    def initialize(self, args):
        threadpool_limits(1)  # concurrency comes from Triton's instances
        parameters = repository_parameters(args)
        self.settings = Settings.from_repository(parameters)
        self.mask_stride = whole_number(parameters, "mask_stride", 4)

    def execute(self, requests):
        return [respond(request, self.infer) for request in requests]

    def infer(self, arrays, parameters):
        settings = self.settings.override(parameters)
        img_shapes = image_shapes("img_shape", arrays["img_shape"])
        ori_shapes = image_shapes("ori_shape", arrays["ori_shape"])
        check_size("semantic", ori_shapes)
        images = zip(arrays["cls_logits"], arrays["mask_logits"], img_shapes, ori_shapes, strict=True)
        maps = [
            semantic(*logits, img_shape=img, ori_shape=ori, settings=settings, mask_stride=self.mask_stride)
            for *logits, img, ori in images
        ]
        return {"semantic": stack_maps(maps, NO_CLASS)}
