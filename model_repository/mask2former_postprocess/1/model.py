"""Logits -> scored instances."""

from functools import partial
from importlib.metadata import version

from m2f import native
from m2f.batch import of_each_image, stack_instances
from m2f.limits import MAX_INSTANCES, MAX_PIXELS
from m2f.postprocess import postprocess
from m2f.record import instances_found
from m2f.settings import Settings, model_facts, whole_number
from m2f_backend.metrics import set_info
from m2f_backend.step import StepModel


class TritonPythonModel(StepModel):
    """cls_logits [N, Q, C+1], mask_logits [N, Q, h, w], img_shape, ori_shape [N, 2] -> structured outputs."""

    def initialize(self, args):
        super().initialize(args)
        self.settings = Settings.from_repository(self.parameters)
        self.facts = model_facts(self.parameters)
        self.threads = whole_number(self.parameters, "threads", 1)
        self.max_pixels = whole_number(self.parameters, "max_pixels", MAX_PIXELS)
        self.max_instances = whole_number(self.parameters, "max_instances", MAX_INSTANCES)
        set_info(version=version("m2f"), kernel=native.kernels()[0])
        self.log("loaded", kernel=native.kernels()[0], threads=self.threads)

    def infer(self, arrays, parameters):
        own = {"settings": self.settings.override(parameters), **self.facts, "threads": self.threads}
        found = of_each_image(arrays, partial(postprocess, **own), max_pixels=self.max_pixels)
        outputs = stack_instances(found, max_instances=self.max_instances)
        instances_found(outputs["num_instances"].reshape(-1).tolist())
        # an ensemble's output may feed no other step, so the masks step gets its own copy
        return {**outputs, "inner_rle": outputs["rle"], "inner_size": outputs["size"]}
