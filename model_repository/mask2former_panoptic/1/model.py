"""Logits -> panoptic segmentation."""

import json

import numpy as np
from threadpoolctl import threadpool_limits

from m2f.batch import images
from m2f.label_maps import check_size, stack_maps
from m2f.panoptic import VOID, panoptic
from m2f.settings import Settings, model_facts
from m2f_server.glue import Step


class TritonPythonModel:
    """cls_logits [N, Q, C+1], mask_logits [N, Q, h, w], img_shape, ori_shape [N, 2] -> panoptic, segments."""

    def initialize(self, args):
        threadpool_limits(1)  # concurrency comes from Triton's instances
        self.step = Step(args)
        self.settings = Settings.from_repository(self.step.parameters)
        self.facts = model_facts(self.step.parameters)

    def execute(self, requests):
        return [self.step.respond(request, self.infer) for request in requests]

    def infer(self, arrays, parameters):
        settings = self.settings.override(parameters)
        given = images(arrays)
        check_size("panoptic", [sizes["ori_shape"] for _, sizes in given])
        found = [panoptic(*logits, **sizes, settings=settings, **self.facts) for logits, sizes in given]
        segments = [[json.dumps(image.segments).encode()] for image in found]
        return {
            "panoptic": stack_maps([image.ids for image in found], VOID),
            "segments": np.array(segments, object),
        }
