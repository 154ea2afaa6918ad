"""Encoded pictures to the network's input."""

import numpy as np
import triton_python_backend_utils as pb_utils
from picture import preprocess


class TritonPythonModel:
    """A picture a request."""

    def execute(self, requests):
        """Answer each request."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Answer one request."""
        encoded = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().item()
        batch, inner, size = preprocess(encoded)
        arrays = {"input": batch, "inner": np.array([inner], np.int32), "size": np.array([size], np.int32)}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])
