"""KServe v2 over HTTP/1.1: tritonclient encodes and decodes, httpcore (the connections of httpx) carries."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
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
from m2f_client.transports.proxies import Proxy, proxy_for
from m2f_client.transports.served_models import Hint
from m2f_client.transports.waiting import BLOCKING, Waiting, in_thread

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
_PIECE = 1 << 20  # bytes written or read at once: httpcore copies what is left of a buffer after each write


class Targets:
    """Servers that can stand in for each other. The server that answered last is asked first. Safe between threads."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = tuple(targets)
        self._first = 0

    def in_turn(self) -> tuple[str, ...]:
        """Return every target once, in the order to ask them in."""
        first = self._first
        return self._targets[first:] + self._targets[:first]

    def pass_over(self, target: str) -> None:
        """Begin with the next target from now on, if `target` is still the first."""
        if self._targets[self._first] == target:
            self._first = (self._first + 1) % len(self._targets)


class HttpTransport:
    """HTTP connections, kept open between calls. Safe to share between threads. A timeout bounds a whole call.

    With asyncio the connections belong to the event loop of the first call.
    """

    def __init__(self, endpoint: Endpoint, waiting: Waiting = BLOCKING) -> None:
        self.url = endpoint.url
        self._endpoint = endpoint
        self._waiting = waiting
        self._hint = Hint(self)
        self._targets = Targets(endpoint.targets)
        self._proxies = {target: proxy_for(endpoint.scheme, target) for target in endpoint.targets}
        self._pools = OfProcess(self._open)

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
        for pool in (self._pools.pop() or {}).values():
            for connection in pool.connections:
                if connection.is_idle():
                    await self._waiting.call(connection.aclose if self._waiting.asynchronous else connection.close)

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
        sent = {"content-type": "application/octet-stream", **PLAIN, **self._endpoint.headers, **(headers or {})}

        async def ask(target: str) -> T:
            try:
                with translated(_ERRORS, self.url, timeout, self._proxies[target]):
                    response = await self._send(target, f"/v2/{path}", sent, body, deadline)
                    got = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                    if response.status != HTTPStatus.OK:
                        raise _refusal(response.status, response.content)
                    with readable():
                        refuse_encoded(got.get("content-encoding"), sent["accept-encoding"])
                        return read(got, response.content)
            except (ServerUnavailable, Timeout):
                self._targets.pass_over(target)
                raise

        return await first_available(self._targets.in_turn(), ask)

    async def _send(
        self, target: str, path: str, headers: Mapping[str, str], body: bytes | None, deadline: Deadline
    ) -> Any:
        """Return the response, from a second try if the connection breaks: the server may have closed an idle one."""
        timeouts = {} if self._waiting.asynchronous else dict.fromkeys(("connect", "read", "write"), deadline)
        call = {
            "method": "GET" if body is None else "POST",
            "url": f"{self._endpoint.scheme}://{target}{self._endpoint.path}{path}",
            "headers": {"host": _ZONE.sub("]", target), **headers},
            "content": body,
            "extensions": {"timeout": timeouts},
        }
        with self._waiting.limit(deadline.left()):
            request = self._pools.get()[self._proxies[target]].request
            try:
                with suppress(*_HUNG_UP):
                    return await self._waiting.call(request, **call)
                return await self._waiting.call(request, **call)
            except httpcore.ProxyError as error:  # it says nothing but the proxy's answer
                raise ConnectionRefusedError(str(error)) from error

    def _open(self) -> dict[Proxy | None, Any]:
        """Return the connections on each way, straight or by a proxy."""
        tls = None if self._endpoint.tls is None else self._endpoint.tls.context()
        return {proxy: self._pool(proxy, tls) for proxy in self._proxies.values()}

    def _pool(self, proxy: Proxy | None, tls: ssl.SSLContext | None) -> Any:
        asynchronous = self._waiting.asynchronous
        options: dict[str, Any] = {"ssl_context": tls, "max_connections": None}
        if not asynchronous:
            options["network_backend"] = _Network()
        elif proxy is None:  # a tunnel through a proxy begins without TLS
            options["network_backend"] = _AwaitedNetwork(tls)
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


class _Network(httpcore.SyncBackend):
    """Sockets whose timeouts are `Deadline`s: httpcore's timeouts bound one read or write each, ours the whole call."""

    def connect_tcp(self, host: str, port: int, timeout: Any = None, *args: Any, **kwargs: Any) -> _Stream:
        """Connect, in a thread: looking up a name keeps to no timeout, and each of several addresses has its own."""
        return _Stream(in_thread(super().connect_tcp, timeout.left(), host, port, _left(timeout), *args, **kwargs))


class _Stream(httpcore.NetworkStream):
    """Sends a request's headers and body together, when the answer is read: the server wakes up once."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._unsent = b""

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        unsent, self._unsent = self._unsent, b""
        with suppress(httpcore.WriteError):  # the server may have refused the request before it was whole
            for start in range(0, len(unsent), _PIECE):
                self._stream.write(unsent[start : start + _PIECE], _left(timeout))
        return self._stream.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: Any = None) -> None:  # noqa: ARG002 (part of the interface)
        self._unsent += buffer

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: Any = None
    ) -> _Stream:
        return _Stream(in_thread(self._stream.start_tls, timeout.left(), ssl_context, server_hostname, _left(timeout)))


class _AwaitedNetwork(httpcore.AsyncNetworkBackend):
    """asyncio's streams. anyio's, httpcore's default, take more work for each request.

    Args:
        tls: for connections with TLS.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> _AwaitedStream:
        return _AwaitedStream(*await asyncio.open_connection(host, port, ssl=self._tls, limit=_PIECE))


class _AwaitedStream(httpcore.AsyncNetworkStream):
    """`_Stream`, awaited. `Waiting.limit` bounds the time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._unsent = b""

    async def aclose(self) -> None:
        self._writer.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # asked of an idle connection: has the server closed it?
            return self._reader.at_eof() or self._writer.is_closing()
        return self._writer.get_extra_info(info)

    async def read(self, max_bytes: int, timeout: Any = None) -> bytes:  # noqa: ARG002 (part of the interface)
        unsent, self._unsent = self._unsent, b""
        if unsent:
            with suppress(ConnectionError):
                self._writer.write(unsent)
                await self._writer.drain()
        return await self._reader.read(_PIECE)

    async def write(self, buffer: bytes, timeout: Any = None) -> None:  # noqa: ARG002
        self._unsent += buffer

    async def start_tls(self, *_: Any, **__: Any) -> _AwaitedStream:
        return self  # it has TLS from the start


def _left(deadline: Deadline) -> float | None:
    left = deadline.left()
    if left == 0:  # which a socket takes for "do not wait"
        raise TimeoutError
    return left
