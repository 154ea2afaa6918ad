"""Encoded images -> engine input."""

import cv2

from m2f.preprocess import Preprocessing
from m2f.record import phase
from m2f.settings import Settings
from m2f_backend.backpressure import Backpressure
from m2f_backend.step import StepModel


class TritonPythonModel(StepModel):
    """image BYTES [N, 1] -> input, img_shape, ori_shape."""

    alone = True  # the first step

    def initialize(self, args):
        cv2.setNumThreads(1)  # concurrency comes from Triton's instances
        super().initialize(args)
        self.settings = Settings()
        self.preprocessing = Preprocessing.from_repository(self.parameters)
        self.backpressure = Backpressure(args["model_name"], self.warn)

    def infer(self, arrays, parameters):
        self.settings.override(parameters)  # a wrong parameter fails here, before the engine has worked for it
        with phase("wait"):
            self.backpressure.wait()
        batch, img_shape, ori_shape = self.preprocessing(arrays["image"].reshape(-1).tolist())
        return {"input": batch, "img_shape": img_shape, "ori_shape": ori_shape}
