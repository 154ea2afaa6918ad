"""KServe v2 over HTTP/1.1: tritonclient encodes and decodes, httpcore (the connections of httpx) carries."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

import httpcore
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from m2f_client.answer import PLAIN, readable, refuse_encoded
from m2f_client.client_errors import ModelNotFound, ServerError, ServerUnavailable, Timeout
from m2f_client.transports.address import Endpoint
from m2f_client.transports.failures import translated
from m2f_client.transports.of_process import OfProcess
from m2f_client.transports.protocol import Array, Deadline, Request, arrays, first_available, infer_arguments
from m2f_client.transports.proxies import host_and_port
from m2f_client.transports.served_models import Hint
from m2f_client.transports.servers import Server, Servers, Turns
from m2f_client.transports.sockets import AwaitedNetwork, Network, Patience
from m2f_client.transports.waiting import BLOCKING, Waiting

T = TypeVar("T")

_HEADER_SIZE = "inference-header-content-length"
_ERRORS = (
    InferenceServerException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    OSError,
)
_HUNG_UP = (httpcore.ReadError, httpcore.RemoteProtocolError, ConnectionResetError, BrokenPipeError)
_ZONE = re.compile(r"%[^\]]*\]")  # of an IPv6 address: it means something on this machine only


class HttpTransport:
    """HTTP connections, kept open between calls. Safe to share between threads. A timeout bounds a whole call.

    With asyncio the connections belong to the event loop of the first call.
    """

    def __init__(self, endpoint: Endpoint, waiting: Waiting = BLOCKING) -> None:
        self.url = endpoint.url
        self._endpoint = endpoint
        self._waiting = waiting
        self._hint = Hint(self)
        self._turns = Turns()
        self._pools = OfProcess(lambda: _Pools(endpoint, waiting))
        self._pools.get()  # checks the proxies

    async def infer(self, request: Request) -> dict[str, Array]:
        """Run the model; see `Transport.infer`."""
        with translated((InferenceServerException,), self.url, request.timeout):
            body, size = triton.InferenceServerClient.generate_request_body(**infer_arguments(triton, request))
        headers = {} if size is None else {_HEADER_SIZE: str(size)}

        def read(headers: Mapping[str, str], content: bytes) -> dict[str, Array]:
            size = int(headers[_HEADER_SIZE]) if _HEADER_SIZE in headers else None
            encoding = headers.get("content-encoding")
            try:
                answer = triton.InferenceServerClient.parse_response_body(content, False, size, encoding)
            except InferenceServerException as error:  # it holds text that is not UTF-8
                raise ServerError(f"the server's answer cannot be read ({error})") from error
            return arrays(answer, request)

        deadline = Deadline(request.timeout)
        try:
            return await self._call(read, request.timeout, f"models/{_quoted(request.model)}/infer", body, headers)
        except ModelNotFound as error:
            raise await self._hint.added_to(error, deadline.left()) from error.__cause__

    async def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`; see `Connection.model_config`."""
        config: dict[str, Any] = await self._call(_as_json, timeout, f"models/{_quoted(model)}/config")
        return config

    async def register_memory(self, name: str, byte_size: int, timeout: float | None) -> None:
        """Let the server map memory; see `Connection.register_memory`."""
        body = json.dumps({"key": f"/{name}", "offset": 0, "byte_size": byte_size}).encode()
        await self._call(_as_is, timeout, f"systemsharedmemory/region/{name}/register", body)

    async def unregister_memory(self, name: str, timeout: float | None) -> None:
        """Let the server unmap memory; see `Connection.unregister_memory`."""
        await self._call(_as_is, timeout, f"systemsharedmemory/region/{name}/unregister", b"")

    async def statistics(self, timeout: float | None) -> Sequence[Mapping[str, Any]]:
        """Return the server's statistics; see `Connection.statistics`."""
        answer = await self._call(_as_json, timeout, "models/stats")
        with readable():
            stats: Sequence[Mapping[str, Any]] = answer["model_stats"]
        return stats

    async def close(self) -> None:
        """Close the connections. Calls that other threads or tasks are still in finish first."""
        if (pools := self._pools.pop()) is not None:
            await pools.close()

    async def _call(
        self,
        read: Callable[[Mapping[str, str], bytes], T],
        timeout: float | None,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Return what `read` makes of the headers and the body of the first server that is available."""
        deadline = Deadline(timeout)
        pools = self._pools.get()
        with translated((TimeoutError,), self.url, timeout):
            servers = self._turns.order(await pools.current(deadline))
        sent = {"content-type": "application/octet-stream", **PLAIN, **self._endpoint.headers, **(headers or {})}

        given_up: list[Server] = []

        async def ask(server: Server) -> T:
            url = f"{self._endpoint.scheme}://{server.target}{self._endpoint.path}/v2/{path}"
            host = {"host": _ZONE.sub("]", server.target)}
            connect = Patience(deadline, others=server is not servers[-1] and server not in given_up)
            extensions = {"timeout": {"connect": connect, "read": deadline, "write": deadline}}
            if self._waiting.asynchronous and server.proxy is not None:
                extensions = {}  # httpcore's own sockets take no `Deadline`; the limit below bounds the call
            try:
                with translated(_ERRORS, self.url, timeout, server.proxy), self._waiting.limit(deadline.left()):
                    call = {"headers": host | sent, "content": body, "extensions": extensions}
                    response = await self._send(pools.of(server), url, **call)
                    got = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                    if response.status != HTTPStatus.OK:
                        raise _refusal(response.status, response.content)
                    with readable():
                        refuse_encoded(got.get("content-encoding"), sent["accept-encoding"])
                        answer = read(got, response.content)
                self._turns.answered(server)
                return answer
            except (ServerUnavailable, Timeout) as error:
                self._turns.failed(server, in_time=isinstance(error, ServerUnavailable))
                if connect.lost:
                    given_up.append(server)
                    raise ServerUnavailable(str(error)) from error
                raise

        try:
            return await first_available(servers, ask)
        except ServerUnavailable:
            if not given_up:
                raise
            return await ask(given_up[0])  # slow to accept a connection, but perhaps there

    async def _send(self, pool: Any, url: str, **call: Any) -> Any:
        """Return the response, from a second try if the connection breaks: the server may have closed an idle one."""
        method = "GET" if call["content"] is None else "POST"
        try:
            with suppress(*_HUNG_UP):
                return await self._waiting.call(pool.request, method, url, **call)
            return await self._waiting.call(pool.request, method, url, **call)
        except httpcore.ProxyError as error:  # it says nothing but the proxy's answer
            raise ConnectionRefusedError(str(error)) from error


class _Pools:
    """The connections of one process, by server. Safe to share between threads.

    Args:
        endpoint: the servers.
        waiting: how the client waits.
    """

    def __init__(self, endpoint: Endpoint, waiting: Waiting) -> None:
        self._servers = Servers(endpoint)
        self._waiting = waiting
        self._tls = None if endpoint.tls is None else endpoint.tls.context()
        self._pools: dict[Server, Any] = {}

    async def current(self, deadline: Deadline) -> tuple[Server, ...]:
        """Return the servers, and close idle connections to those that are gone; see `Servers.current`."""
        servers = await self._servers.current(self._waiting, deadline)
        for server, pool in list(self._pools.items()):
            if server not in servers:
                await self._close_idle(pool)
                if all(connection.is_closed() for connection in pool.connections):  # else a later call closes the rest
                    self._pools.pop(server, None)
        return servers

    def of(self, server: Server) -> Any:
        """Return the connections to a server."""
        if server not in self._pools:
            self._pools.setdefault(server, self._open(server))
        return self._pools[server]

    async def close(self) -> None:
        """Close all idle connections."""
        for pool in list(self._pools.values()):
            await self._close_idle(pool)

    async def _close_idle(self, pool: Any) -> None:
        for connection in pool.connections:
            if connection.is_idle():
                await self._waiting.call(connection.aclose if self._waiting.asynchronous else connection.close)

    def _open(self, server: Server) -> Any:
        asynchronous, proxy = self._waiting.asynchronous, server.proxy
        options: dict[str, Any] = {"ssl_context": self._tls, "max_connections": None}
        host = None if proxy is not None else host_and_port(server.address)[0]
        if not asynchronous:
            options["network_backend"] = Network(host)
        elif host is not None:  # a tunnel through a proxy begins without TLS
            options["network_backend"] = AwaitedNetwork(host, self._tls)
        if proxy is None:
            return (httpcore.AsyncConnectionPool if asynchronous else httpcore.ConnectionPool)(**options)
        kind = httpcore.AsyncHTTPProxy if asynchronous else httpcore.HTTPProxy
        return kind(f"http://{proxy.address}", proxy.login, **options)


def _quoted(name: str) -> str:
    return quote(name, safe="")  # a slash, too: the name is one part of the path


def _as_is(_: Mapping[str, str], content: bytes) -> bytes:
    return content


def _as_json(_: Mapping[str, str], content: bytes) -> Any:
    return json.loads(content)


def _refusal(status: int, content: bytes) -> InferenceServerException:
    """Return the error in an answer. Its message is None if the body is not Triton's JSON."""
    try:
        message = json.loads(content)["error"] if content else ""
    except (LookupError, RecursionError, TypeError, ValueError):
        message = None
    return InferenceServerException(message, str(status))
