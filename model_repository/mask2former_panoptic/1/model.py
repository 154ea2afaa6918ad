"""Logits -> panoptic segmentation."""

import json

import numpy as np
from threadpoolctl import threadpool_limits

from m2f.batch import of_each_image
from m2f.label_maps import check_size, stack_maps
from m2f.limits import MAX_MAP_BYTES, MAX_PIXELS
from m2f.model_facts import ModelFacts
from m2f.panoptic import VOID, panoptic
from m2f.parameters import whole_number
from m2f.settings import Settings
from m2f_backend.step import StepModel


class TritonPythonModel(StepModel):
    """cls_logits [N, Q, C+1], mask_logits [N, Q, h, w], img_shape, ori_shape [N, 2] -> panoptic, segments."""

    def initialize(self, args):
        threadpool_limits(1)  # concurrency comes from Triton's instances
        super().initialize(args)
        self.settings = Settings.from_repository(self.parameters)
        self.facts = ModelFacts.from_repository(self.parameters)
        self.max_pixels = whole_number(self.parameters, "max_pixels", MAX_PIXELS)
        self.max_bytes = whole_number(self.parameters, "max_output_bytes", MAX_MAP_BYTES)

    def infer(self, arrays, parameters):
        settings = self.settings.override(parameters)
        check_size("panoptic", arrays["ori_shape"].tolist(), max_bytes=self.max_bytes)
        found = of_each_image(
            arrays,
            lambda image: panoptic(image, settings, self.facts),
            mask_stride=self.facts.mask_stride,
            max_pixels=self.max_pixels,
        )
        segments = [[json.dumps(image.segments).encode()] for image in found]
        return {
            "panoptic": stack_maps([image.ids for image in found], VOID),
            "segments": np.array(segments, object),
        }
