"""Logits -> scored instances."""

import json

from m2f import native
from m2f.batch import image_shapes, stack_instances
from m2f.postprocess import postprocess
from m2f.settings import Settings, thing_classes, whole_number
from m2f_server.glue import log, repository_parameters, respond


class TritonPythonModel:
    """cls_logits [N, Q, C+1], mask_logits [N, Q, h, w], img_shape, ori_shape [N, 2] -> structured outputs."""

    def initialize(self, args):
        parameters = repository_parameters(args)
        self.settings = Settings.from_repository(parameters)
        self.class_names = tuple(json.loads(parameters.get("class_names", "[]")))
        self.thing_classes = thing_classes(parameters)
        self.mask_stride = whole_number(parameters, "mask_stride", 4)
        self.threads = whole_number(parameters, "threads", 1)
        log(f"post-processing on {native.kernels()[0]}, threads: {self.threads}")

    def execute(self, requests):
        return [respond(request, self.infer) for request in requests]

    def infer(self, arrays, parameters):
        settings = self.settings.override(parameters)
        images = zip(
            arrays["cls_logits"],
            arrays["mask_logits"],
            image_shapes("img_shape", arrays["img_shape"]),
            image_shapes("ori_shape", arrays["ori_shape"]),
            strict=True,
        )
        outputs = stack_instances([self.instances(*image, settings) for image in images])
        # an ensemble's output may feed no other step, so the masks step gets its own copy
        return {**outputs, "inner_rle": outputs["rle"], "inner_size": outputs["size"]}

    def instances(self, cls_logits, mask_logits, img_shape, ori_shape, settings):
        return postprocess(
            cls_logits,
            mask_logits,
            img_shape=img_shape,
            ori_shape=ori_shape,
            settings=settings,
            class_names=self.class_names,
            thing_classes=self.thing_classes,
            mask_stride=self.mask_stride,
            threads=self.threads,
        )
