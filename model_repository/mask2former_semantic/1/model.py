"""Logits -> a class for each pixel."""

from threadpoolctl import threadpool_limits

from m2f.batch import images
from m2f.label_maps import check_size, stack_maps
from m2f.semantic import NO_CLASS, semantic
from m2f.settings import Settings, whole_number
from m2f_server.glue import Step


class TritonPythonModel:
    """cls_logits [N, Q, C+1], mask_logits [N, Q, h, w], img_shape, ori_shape [N, 2] -> semantic."""

    def initialize(self, args):
        threadpool_limits(1)  # concurrency comes from Triton's instances
        self.step = Step(args)
        self.settings = Settings.from_repository(self.step.parameters)
        self.mask_stride = whole_number(self.step.parameters, "mask_stride", 4)

    def execute(self, requests):
        return [self.step.respond(request, self.infer) for request in requests]

    def infer(self, arrays, parameters):
        own = {"settings": self.settings.override(parameters), "mask_stride": self.mask_stride}
        given = images(arrays)
        check_size("semantic", [sizes["ori_shape"] for _, sizes in given])
        return {"semantic": stack_maps([semantic(*logits, **sizes, **own) for logits, sizes in given], NO_CLASS)}
