"""KServe v2 over gRPC, by tritonclient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from m2f_client.failures import translated
from m2f_client.transport import Array, Parameter, request_tensors


class GrpcTransport:
    """A gRPC channel. Safe to share between threads.

    tritonclient's channel already takes messages up to 2 GiB, the limit of protobuf: enough for raw logits
    and dense masks. `timeout` bounds a whole call.
    """

    def __init__(self, address: str, *, url: str, timeout: float | None) -> None:
        self.url = url
        self._timeout = timeout
        self._client = triton.InferenceServerClient(address)

    def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> dict[str, Array]:
        """Run `model`; see `Transport.infer`."""
        tensors, wanted = request_tensors(triton, inputs, outputs)
        with self._translated():
            answer = self._client.infer(
                model, tensors, outputs=wanted, parameters=dict(parameters), client_timeout=self._timeout
            )
            return {name: answer.as_numpy(name) for name in outputs}

    def model_config(self, model: str) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""
        with self._translated():
            answer = self._client.get_model_config(model, as_json=True, client_timeout=self._timeout)
            config: dict[str, Any] = answer["config"]
            return config

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    def _translated(self) -> Any:
        return translated((InferenceServerException,), self.url, self._timeout)
