"""Logits -> scored instances."""

import json
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from m2f.batch import of_each_image, stack_instances
from m2f.kernels import BEST
from m2f.limits import MAX_INSTANCES, MAX_PIXELS
from m2f.model_facts import ModelFacts
from m2f.parameters import whole_number
from m2f.postprocess import postprocess
from m2f.record import instances_found
from m2f.settings import Settings
from m2f_backend.metrics import set_info
from m2f_backend.step import StepModel


class TritonPythonModel(StepModel):
    """cls_logits [N, Q, C+1], mask_logits [N, Q, h, w], img_shape, ori_shape [N, 2] -> structured outputs."""

    def initialize(self, args):
        super().initialize(args)
        self.settings = Settings.from_repository(self.parameters)
        self.facts = ModelFacts.from_repository(self.parameters)
        self.class_names = json.dumps(self.facts.class_names).encode()
        self.kernel = replace(BEST, threads=whole_number(self.parameters, "threads", 1))
        self.max_pixels = whole_number(self.parameters, "max_pixels", MAX_PIXELS)
        self.max_instances = whole_number(self.parameters, "max_instances", MAX_INSTANCES)
        set_info(version=version("m2f"), kernel=self.kernel.name)
        self.log("loaded", kernel=self.kernel.name, threads=self.kernel.threads)

    def infer(self, arrays, parameters):
        settings = self.settings.override(parameters)
        found = of_each_image(
            arrays,
            lambda image: postprocess(image, settings, self.facts, kernel=self.kernel),
            mask_stride=self.facts.mask_stride,
            max_pixels=self.max_pixels,
        )
        outputs = stack_instances(found, max_instances=self.max_instances)
        instances_found(outputs["num_instances"].reshape(-1).tolist())
        # an ensemble's output may feed no other step, so the masks step gets its own copy
        inner = {"inner_rle": outputs["rle"], "inner_size": outputs["size"]}
        return {**outputs, **inner, "class_names": np.full((len(found), 1), self.class_names, object)}
