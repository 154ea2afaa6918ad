"""Logits -> panoptic segmentation."""

import json

import numpy as np
from threadpoolctl import threadpool_limits

from m2f.batch import image_shapes
from m2f.label_maps import check_size, stack_maps
from m2f.panoptic import VOID, panoptic
from m2f.settings import Settings, thing_classes, whole_number
from m2f_server.glue import repository_parameters, respond


class TritonPythonModel:
    """cls_logits [N, Q, C+1], mask_logits [N, Q, h, w], img_shape, ori_shape [N, 2] -> panoptic, segments."""

    def initialize(self, args):
        threadpool_limits(1)  # concurrency comes from Triton's instances
        parameters = repository_parameters(args)
        self.settings = Settings.from_repository(parameters)
        self.class_names = tuple(json.loads(parameters.get("class_names", "[]")))
        self.thing_classes = thing_classes(parameters)
        self.mask_stride = whole_number(parameters, "mask_stride", 4)

    def execute(self, requests):
        return [respond(request, self.infer) for request in requests]

    def infer(self, arrays, parameters):
        settings = self.settings.override(parameters)
        img_shapes = image_shapes("img_shape", arrays["img_shape"])
        ori_shapes = image_shapes("ori_shape", arrays["ori_shape"])
        check_size("panoptic", ori_shapes)
        images = zip(arrays["cls_logits"], arrays["mask_logits"], img_shapes, ori_shapes, strict=True)
        found = [self.segmented(*image, settings) for image in images]
        segments = [[json.dumps(image.segments).encode()] for image in found]
        return {
            "panoptic": stack_maps([image.ids for image in found], VOID),
            "segments": np.array(segments, object),
        }

    def segmented(self, cls_logits, mask_logits, img_shape, ori_shape, settings):
        return panoptic(
            cls_logits,
            mask_logits,
            img_shape=img_shape,
            ori_shape=ori_shape,
            settings=settings,
            class_names=self.class_names,
            thing_classes=self.thing_classes,
            mask_stride=self.mask_stride,
        )
