"""Plain tritonclient calls, so that the server is tested without our own client in between."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

DTYPES = {"uint8": "UINT8", "int32": "INT32", "object": "BYTES", "float32": "FP32"}


@dataclass
class Protocol:
    """One of tritonclient's two flavours, connected."""

    module: Any
    client: Any

    def infer(self, model, inputs, outputs=None, **parameters):
        """Arrays in, arrays out: exactly the outputs that the server sent."""
        tensors = []
        for name, array in inputs.items():
            tensor = self.module.InferInput(name, array.shape, DTYPES[str(array.dtype)])
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        requested = None if outputs is None else [self.module.InferRequestedOutput(name) for name in outputs]
        result = self.client.infer(model, tensors, outputs=requested, parameters=parameters or None)
        response = result.get_response()
        sent = (
            [o["name"] for o in response["outputs"]]
            if isinstance(response, dict)
            else [o.name for o in response.outputs]
        )
        return {name: result.as_numpy(name) for name in sent}

    def runs(self):
        """How often each model of the repository has run: name -> inferences."""
        statistics = self.client.get_inference_statistics()
        if not isinstance(statistics, dict):
            return {m.name: m.inference_count for m in statistics.model_stats}
        return {m["name"]: m["inference_count"] for m in statistics["model_stats"]}

    def settled_runs(self):
        """The same once it stands still: the server counts a request after it has answered it."""
        runs = None
        while runs != (runs := self.runs()):
            time.sleep(0.3)
        return runs


def connect(server, protocol):
    """Connect over `http` or `grpc`."""
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    url = {"http": server.http_url, "grpc": server.grpc_url}[protocol]
    options = {"http": {"concurrency": 8}, "grpc": {}}[protocol]
    return Protocol(module, module.InferenceServerClient(url, **options))


def image_input(*files):
    """The `image` input [N, 1] of encoded files."""
    return {"image": np.array([[data] for data in files], dtype=object)}
