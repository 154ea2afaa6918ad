"""Run 1/model.onnx, an engine with its head, on ONNX Runtime, for `--model-config-name=cpu` and `gpu`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError
from m2f_backend.onnx_session import open_engine
from m2f_backend.step import Arrays, StepModel

MAX_BYTES = 1 << 30  # largest size of the masks of a response


class TritonPythonModel(StepModel):
    """input, img_shape, ori_shape -> num_instances, scores, labels, boxes, masks."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the graph."""
        super().initialize(args)
        self.engine = open_engine(args, self.parameters)
        self.rows = next(output.shape[1] for output in self.engine.session.get_outputs() if output.name == "scores")

    def infer(self, arrays: Arrays, parameters: Mapping[str, Any]) -> Arrays:
        """Run the graph."""
        if parameters:
            raise InputError(
                f"request parameter '{min(parameters)}': the thresholds of a graph with its head are in it",
                kind="parameter",
            )
        self.check_size(arrays["ori_shape"])
        return self.engine.run(arrays)

    def check_size(self, ori_shape: npt.NDArray[np.int32]) -> None:
        """Refuse masks that do not fit in memory: the graph makes every row at full size, even with a score of 0."""
        height, width = ori_shape.max(axis=0).tolist()
        if (num_bytes := len(ori_shape) * self.rows * height * width) > MAX_BYTES:
            raise InputError(
                f"the masks would take {num_bytes} bytes ({len(ori_shape)} x {self.rows} x {height} x {width}); "
                f"allowed are {MAX_BYTES}: ask for 'rle' of the model without a head",
                kind="output_too_large",
            )
