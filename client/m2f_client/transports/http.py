"""KServe v2 over HTTP, by tritonclient."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import gevent
import gevent.ssl
import tritonclient.http as triton
from gevent.resolver.blocking import Resolver
from geventhttpclient.response import HTTPParseError
from tritonclient.utils import InferenceServerException

from m2f_client.answer import PLAIN, readable, refuse_encoded
from m2f_client.client_errors import ServerError, ServerUnavailable, Timeout
from m2f_client.transports.address import Endpoint
from m2f_client.transports.failures import translated
from m2f_client.transports.protocol import (
    Array,
    Deadline,
    Request,
    T,
    Targets,
    arrays,
    first_available,
    infer_arguments,
)

_ERRORS = (InferenceServerException, HTTPParseError, OSError, concurrent.futures.TimeoutError)

MAX_THREADS = 32
"""Requests in flight at most, over one transport, from threads other than the main one."""


class _Client(triton.InferenceServerClient):  # type: ignore[misc]
    """tritonclient's, which unpacks whatever comes: the one place where headers are seen before it does."""

    def _post(self, request_uri: str, request_body: Any, headers: Mapping[str, str], query_params: Any) -> Any:
        response = super()._post(request_uri, request_body, headers, query_params)
        if response.status_code == HTTPStatus.OK:  # it reads errors as they are
            refuse_encoded(response.get("Content-Encoding"), headers["accept-encoding"])
        return response


class _Connections:
    """The clients of one thread, one a server: gevent ties them to the thread that made them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._clients: dict[str, Any] = {}
        self._hub = None if threading.current_thread() is threading.main_thread() else gevent.get_hub()
        if self._hub is not None:
            self._hub.resolver = Resolver(self._hub)  # the usual one has threads of its own, which cannot end with ours

    def client(self, target: str) -> Any:
        """Return the client of a server; it connects at its first request."""
        if target not in self._clients:
            tls = self._endpoint.tls
            self._clients[target] = _Client(
                target + self._endpoint.path,
                connection_timeout=None,  # each call has a timeout as a whole
                network_timeout=None,
                ssl=tls is not None,
                ssl_context_factory=tls and (lambda cafile: tls.context(gevent.ssl)),  # noqa: ARG005 (its default CA)
            )
        return self._clients[target]

    def drop(self, target: str) -> None:
        """Close the client of a server: a call that was cut off leaves half an answer in its socket."""
        client = self._clients.pop(target, None)
        if client is not None:
            client.close()

    def __del__(self) -> None:
        """Close the connections, and in a worker, which ends now, the file descriptors of gevent's hubs too."""
        for target in list(self._clients):
            self.drop(target)
        if self._hub is not None:
            self._hub.destroy(destroy_loop=True)
            gevent.get_hub().destroy(destroy_loop=True)  # closing made another: the first had left the thread


class HttpTransport:
    """HTTP connections. Safe to share between threads. A timeout bounds a whole call.

    tritonclient's HTTP client (gevent) belongs to one thread. The main thread has its own; calls from other
    threads are handed to workers, each with its own, so that threads may come and go without leaking.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self._endpoint = endpoint
        self._headers = {**PLAIN, **endpoint.headers}
        self._targets = Targets(endpoint.targets)
        self._main: _Connections | None = None
        self._workers = concurrent.futures.ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="m2f-http")
        self._worker = threading.local()

    def infer(self, request: Request) -> dict[str, Array]:
        """Run the model; see `Transport.infer`."""

        def call(client: Any) -> dict[str, Array]:
            return arrays(client.infer(**infer_arguments(triton, request, self._headers)), request)

        return self._call(call, request.timeout)

    def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""
        headers = dict(self._headers)
        return self._call(lambda client: client.get_model_config(model, headers=headers), timeout)

    def register_memory(self, name: str, byte_size: int, timeout: float | None) -> None:
        """Let the server map memory; see `SharingTransport.register_memory`."""
        headers = dict(self._headers)
        self._call(
            lambda client: client.register_system_shared_memory(name, f"/{name}", byte_size, headers=headers), timeout
        )

    def unregister_memory(self, name: str, timeout: float | None) -> None:
        """Let the server unmap memory; see `SharingTransport.unregister_memory`."""
        headers = dict(self._headers)
        self._call(lambda client: client.unregister_system_shared_memory(name, headers=headers), timeout)

    def statistics(self, timeout: float | None) -> Sequence[Mapping[str, Any]]:
        """Return the server's statistics; see `Connection.statistics`."""
        headers = dict(self._headers)
        answer = self._call(lambda client: client.get_inference_statistics(headers=headers), timeout)
        stats: Sequence[Mapping[str, Any]] = answer["model_stats"]
        return stats

    def close(self) -> None:
        """Close the connections; calls that other threads are still in finish first, in the background."""
        self._main = None
        self._workers.shutdown(wait=False)

    def _call(self, function: Callable[[Any], T], timeout: float | None) -> T:
        deadline = Deadline(timeout)
        if threading.current_thread() is threading.main_thread():
            if self._main is None:
                self._main = _Connections(self._endpoint)
            return self._ask(self._main, function, deadline, timeout)
        future = self._workers.submit(self._in_worker, function, deadline, timeout)
        try:
            with translated(_ERRORS, self.url, timeout):
                return future.result(deadline.left())
        finally:
            future.cancel()  # it may still wait for a worker

    def _in_worker(self, function: Callable[[Any], T], deadline: Deadline, timeout: float | None) -> T:
        if not hasattr(self._worker, "connections"):
            self._worker.connections = _Connections(self._endpoint)
        return self._ask(self._worker.connections, function, deadline, timeout)

    def _ask(
        self, connections: _Connections, function: Callable[[Any], T], deadline: Deadline, timeout: float | None
    ) -> T:
        def ask(target: str) -> T:
            try:
                with readable(), translated(_ERRORS, self.url, timeout):
                    return _bounded(deadline.left(), function, connections.client(target))
            except ServerError:
                connections.drop(target)  # the rest of the answer may be in its socket
                raise
            except (ServerUnavailable, Timeout):
                connections.drop(target)
                self._targets.pass_over(target)
                raise

        return first_available(self._targets.in_turn(), ask)


def _bounded(seconds: float | None, function: Callable[[Any], T], client: Any) -> T:
    try:
        result: T = gevent.with_timeout(seconds, function, client)
    except gevent.Timeout as error:  # no Exception: nothing in between takes it for one of the network's
        raise TimeoutError from error
    return result
