"""All in one Python model, as tutorials write it: decode, resize, infer, post-process, one request after the other."""

import numpy as np
import triton_python_backend_utils as pb_utils
from engines import open_engine
from picture import predict


class TritonPythonModel:
    """An encoded picture to its instances."""

    def initialize(self, args):  # noqa: ARG002
        """Load the network."""
        self.engine = open_engine()

    def execute(self, requests):
        """Answer each request."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Answer one request."""
        encoded = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().item()
        found = predict(encoded, self.engine)
        arrays = {
            "labels": np.array(found["labels"], np.int32),
            "scores": np.array(found["scores"], np.float32),
            "boxes": np.array(found["boxes"], np.float32).reshape(-1, 4),
            "rle": np.array(found["counts"], np.object_),
            "size": np.array(found["size"], np.int32),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])
