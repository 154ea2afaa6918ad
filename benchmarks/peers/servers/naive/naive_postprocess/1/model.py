"""Logits to scores, labels and dense masks."""

import numpy as np
import triton_python_backend_utils as pb_utils
from picture import instances


class TritonPythonModel:
    """A picture a request."""

    def execute(self, requests):
        """Answer each request."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Answer one request."""
        names = ("cls_logits", "mask_logits", "inner", "size")
        cls_logits, mask_logits, inner, size = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0] for name in names
        )
        found = list(instances(cls_logits, mask_logits, inner.tolist(), tuple(size.tolist())))
        labels, scores, masks = zip(*found, strict=True) if found else ((), (), ())
        arrays = {
            "labels": np.array([labels], np.int32),
            "scores": np.array([scores], np.float32),
            "masks": np.array(masks, np.uint8).reshape(1, len(found), *size),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])
