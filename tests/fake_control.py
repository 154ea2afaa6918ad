"""What a server tells its supervisor, made up."""

import numpy as np

from m2f.contract import CANARY_ID
from m2f_backend.calls import CallError

NO_ANSWER = CallError("timed out")


class FakeControl:
    """A server with the ensemble `public` of `first`, `second` and, for another output, `costly`."""

    def __init__(self, *, error=None, answered=(), pending=(), unready=(), size=(24, 32)):
        self._error, self._answered, self._pending, self._unready = error, iter(answered), dict(pending), unready
        self._size, self.timeouts = size, []

    def config(self, model):
        steps = [("first", "image", "a"), ("second", "a", "size"), ("costly", "a", "mask_logits")]
        return {
            "name": model,
            "input": [{"name": "image", "data_type": "TYPE_STRING"}],
            "output": [{"name": "size"}, {"name": "mask_logits"}],
            "ensemble_scheduling": {
                "step": [
                    {"model_name": name, "input_map": {"x": reads}, "output_map": {"y": writes}}
                    for name, reads, writes in steps
                ]
            },
        }

    def answered(self):
        return next(self._answered, {})

    def pending(self):
        return self._pending

    def is_ready(self, model):
        return model not in self._unready

    def infer(self, model, inputs, outputs, *, request_id, timeout):
        assert (model, list(inputs), outputs, request_id) == ("public", ["image"], ("size",), CANARY_ID)
        self.timeouts.append(timeout)
        if self._error:
            raise self._error
        return {"size": np.array([self._size])}
