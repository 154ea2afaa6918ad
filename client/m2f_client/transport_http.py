"""KServe v2 over HTTP, by tritonclient."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import gevent
import tritonclient.http as triton
from geventhttpclient.response import HTTPParseError
from tritonclient.utils import InferenceServerException

from m2f_client.failures import translated
from m2f_client.transport import Array, Parameter, request_tensors

T = TypeVar("T")

MAX_THREADS = 32
"""Requests in flight at most, over one transport, from threads other than the main one."""


class _Connection:
    """A client of one thread: gevent ties it to the thread that made it."""

    def __init__(self, address: str, timeout: float | None) -> None:
        self.client = triton.InferenceServerClient(address, connection_timeout=timeout, network_timeout=timeout)
        self._hub = None if threading.current_thread() is threading.main_thread() else gevent.get_hub()

    def __del__(self) -> None:
        """Close the connection, and in a worker, which ends now, the file descriptors of gevent's hubs too."""
        self.client.close()
        if self._hub is not None:
            self._hub.destroy(destroy_loop=True)
            gevent.get_hub().destroy(destroy_loop=True)  # closing made another: the first had left the thread


class HttpTransport:
    """HTTP connections. Safe to share between threads.

    tritonclient's HTTP client (gevent) belongs to one thread. The main thread has its own; calls from other
    threads are handed to workers, each with its own, so that threads may come and go without leaking.
    `timeout` bounds connecting and each wait for data, not their sum.
    """

    def __init__(self, address: str, *, url: str, timeout: float | None) -> None:
        self.url = url
        self._address = address
        self._timeout = timeout
        self._main: _Connection | None = None
        self._workers = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="m2f-http")
        self._worker = threading.local()

    def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> dict[str, Array]:
        """Run `model`; see `Transport.infer`."""
        tensors, wanted = request_tensors(triton, inputs, outputs)

        def call(client: Any) -> dict[str, Array]:
            answer = client.infer(model, tensors, outputs=wanted, parameters=dict(parameters))
            return {name: answer.as_numpy(name) for name in outputs}

        return self._call(call)

    def model_config(self, model: str) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""
        return self._call(lambda client: client.get_model_config(model))

    def close(self) -> None:
        """Close the connections; calls that other threads are still in finish first, in the background."""
        self._main = None
        self._workers.shutdown(wait=False)

    def _call(self, function: Callable[[Any], T]) -> T:
        with translated((InferenceServerException, HTTPParseError, OSError), self.url, self._timeout):
            if threading.current_thread() is not threading.main_thread():
                return self._workers.submit(self._in_worker, function).result()
            if self._main is None:
                self._main = _Connection(self._address, self._timeout)
            return function(self._main.client)

    def _in_worker(self, function: Callable[[Any], T]) -> T:
        if not hasattr(self._worker, "connection"):
            self._worker.connection = _Connection(self._address, self._timeout)
        return function(self._worker.connection.client)
