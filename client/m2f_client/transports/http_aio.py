"""KServe v2 over HTTP for asyncio, by tritonclient."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import aiohttp
import tritonclient.http.aio as triton
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
    first_available_async,
    infer_arguments,
)

if sys.version_info >= (3, 11):
    from asyncio import timeout as bounded
else:
    from async_timeout import timeout as bounded  # comes with aiohttp there

_ERRORS = (InferenceServerException, aiohttp.ClientError, OSError, asyncio.TimeoutError)


class _Client(triton.InferenceServerClient):  # type: ignore[misc]
    """tritonclient's, which unpacks whatever comes; see `transport_http._Client`."""

    async def _post(self, request_uri: str, request_body: Any, headers: Mapping[str, str], query_params: Any) -> Any:
        response = await super()._post(request_uri, request_body, headers, query_params)
        try:
            if response.status == HTTPStatus.OK:
                refuse_encoded(response.headers.get("Content-Encoding"), headers["accept-encoding"])
        except ServerError:
            response.close()
            raise
        return response


class AsyncHttpTransport:
    """HTTP connections of one event loop, up to 100 a server. A timeout bounds a whole call."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self._endpoint = endpoint
        self._headers = {**PLAIN, **endpoint.headers}
        self._targets = Targets(endpoint.targets)
        self._clients: dict[str, Any] = {}

    async def infer(self, request: Request) -> dict[str, Array]:
        """Run the model; see `Transport.infer`."""

        async def call(client: Any) -> dict[str, Array]:
            return arrays(await client.infer(**infer_arguments(triton, request, self._headers)), request)

        return await self._call(call, request.timeout)

    async def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""
        headers = dict(self._headers)
        return await self._call(lambda client: client.get_model_config(model, headers=headers), timeout)

    async def register_memory(self, name: str, byte_size: int, timeout: float | None) -> None:
        """Let the server map memory; see `SharingTransport.register_memory`."""
        headers = dict(self._headers)
        await self._call(
            lambda client: client.register_system_shared_memory(name, f"/{name}", byte_size, headers=headers), timeout
        )

    async def close(self) -> None:
        """Close the connections."""
        while self._clients:
            await self._clients.popitem()[1].close()

    async def _call(self, function: Callable[[Any], Awaitable[T]], timeout: float | None) -> T:
        deadline = Deadline(timeout)

        async def ask(target: str) -> T:
            try:
                with readable(), translated(_ERRORS, self.url, timeout):
                    async with bounded(deadline.left()):
                        return await function(self._client(target))
            except (ServerUnavailable, Timeout):
                self._targets.pass_over(target)
                raise

        return await first_available_async(self._targets.in_turn(), ask)

    def _client(self, target: str) -> Any:
        if target not in self._clients:
            tls = self._endpoint.tls
            self._clients[target] = _Client(
                target + self._endpoint.path,
                conn_timeout=None,  # each call has a timeout as a whole
                ssl=tls is not None,
                ssl_context=tls and tls.context(),
            )
        return self._clients[target]
