"""The network's input to logits."""

import triton_python_backend_utils as pb_utils
from engines import OUTPUTS, open_engine


class TritonPythonModel:
    """A picture a request."""

    def initialize(self, args):  # noqa: ARG002
        """Load the network."""
        self.engine = open_engine()

    def execute(self, requests):
        """Answer each request."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Answer one request."""
        batch = pb_utils.get_input_tensor_by_name(request, "input").as_numpy()
        named = zip(OUTPUTS, self.engine(batch), strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in named])
