"""What carries HTTP's bytes: sockets whose timeouts are `Deadline`s, for httpcore."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpcore

from m2f_client.transports.protocol import Deadline
from m2f_client.transports.waiting import AWAITING, in_thread

_CONNECT_S = 2.0  # longest time to connect where there is another server to ask
_PIECE = 1 << 20  # bytes written or read at once: httpcore copies what is left of a buffer after each write


class Patience(Deadline):
    """The time to connect to a server.

    Args:
        deadline: end of the whole call.
        others: whether there is another server to ask.

    Attributes:
        lost: whether the server was given up only because there is another one to ask.
    """

    def __init__(self, deadline: Deadline, *, others: bool) -> None:
        left = deadline.left()
        super().__init__(min(_CONNECT_S, math.inf if left is None else left) if others else left)
        self._others = others
        self.lost = False

    @contextmanager
    def connecting(self) -> Iterator[float | None]:
        """Yield the seconds left to connect in the block, and note whether they were too few."""
        try:
            yield _left(self)
        except (TimeoutError, httpcore.ConnectTimeout):
            self.lost = self._others
            raise


class Network(httpcore.SyncBackend):
    """Sockets whose timeouts are `Deadline`s: httpcore's timeouts bound one read or write each, ours the whole call.

    Args:
        host: IP address or name to connect to; None for the host that httpcore states: a proxy.
    """

    def __init__(self, host: str | None) -> None:
        self._host = host

    def connect_tcp(self, host: str, port: int, timeout: Any = None, *args: Any, **kwargs: Any) -> _Stream:
        """Connect, in a thread: looking up a name keeps to no timeout, and each of several addresses has its own."""
        connect = super().connect_tcp
        with timeout.connecting() as left:
            return _Stream(in_thread(connect, left, self._host or host, port, left, *args, **kwargs))


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


class AwaitedNetwork(httpcore.AsyncNetworkBackend):
    """asyncio's streams. anyio's, httpcore's default, take more work for each request.

    Args:
        host: IP address or name to connect to.
        tls: for connections with TLS, with a certificate for the host that httpcore states.
    """

    def __init__(self, host: str, tls: ssl.SSLContext | None) -> None:
        self._host, self._tls = host, tls

    async def connect_tcp(self, host: str, port: int, timeout: Any = None, *_: Any, **__: Any) -> _AwaitedStream:
        """Connect; with TLS from the start."""
        name = None if self._tls is None else host
        with timeout.connecting() as left, AWAITING.limit(left):
            opened = asyncio.open_connection(self._host, port, ssl=self._tls, server_hostname=name, limit=_PIECE)
            return _AwaitedStream(*await opened)


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
