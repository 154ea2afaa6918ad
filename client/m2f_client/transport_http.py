"""KServe v2 over HTTP, by tritonclient."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import tritonclient.http as triton
from geventhttpclient.response import HTTPParseError
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from m2f_client.failures import translated
from m2f_client.transport import Array, Parameter


class HttpTransport:
    """HTTP connections, one a thread: tritonclient's HTTP client (gevent) belongs to the thread that made it.

    Safe to share between threads. `timeout` bounds connecting and each wait for data, not their sum.
    """

    def __init__(self, address: str, *, url: str, timeout: float | None) -> None:
        self.url = url
        self._address = address
        self._timeout = timeout
        self._local = threading.local()

    def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> dict[str, Array]:
        """Run `model`; see `Transport.infer`."""
        tensors = []
        for name, array in inputs.items():
            tensors.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            tensors[-1].set_data_from_numpy(array)
        wanted = [triton.InferRequestedOutput(name) for name in outputs]
        with self._translated():
            answer = self._client().infer(model, tensors, outputs=wanted, parameters=dict(parameters))
            return {name: answer.as_numpy(name) for name in outputs}

    def model_config(self, model: str) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""
        with self._translated():
            config: dict[str, Any] = self._client().get_model_config(model)
            return config

    def close(self) -> None:
        """Close this thread's connection; those of other threads close when they end."""
        client = getattr(self._local, "client", None)
        if client is not None:
            client.close()
        self._local = threading.local()

    def _client(self) -> Any:
        if not hasattr(self._local, "client"):
            self._local.client = triton.InferenceServerClient(
                self._address, connection_timeout=self._timeout, network_timeout=self._timeout
            )
        return self._local.client

    def _translated(self) -> Any:
        return translated((InferenceServerException, HTTPParseError, OSError), self.url, self._timeout)
