"""How a client waits: in its own thread, or in an event loop.

What lies between `Client` or `AsyncClient` and the network is written once, as coroutines that wait in two ways only:
`call` and `aside` of a `Waiting`. With `BLOCKING` both do the work at once, so a coroutine never suspends and
`run_blocking` has its result after one step. There is no thread and no event loop behind a `Client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Waiting(Protocol):
    """One of the two ways.

    Attributes:
        asynchronous: whether libraries are used in their asyncio flavour.
    """

    asynchronous: bool

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what a function of a library returns; an asyncio flavour's result is awaited."""

    async def aside(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what a function that blocks returns, without holding up an event loop."""

    def limit(self, seconds: float | None) -> AbstractContextManager[Any]:
        """Return a context that raises TimeoutError after `seconds`; with `BLOCKING` it never does."""


class _Blocking:
    asynchronous = False

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return function(*args, **kwargs)

    aside = call

    def limit(self, seconds: float | None) -> AbstractContextManager[Any]:  # noqa: ARG002 (part of the protocol)
        return nullcontext()


class _Awaiting:
    asynchronous = True

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    async def aside(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await asyncio.to_thread(function, *args, **kwargs)

    def limit(self, seconds: float | None) -> AbstractContextManager[Any]:
        import anyio  # noqa: PLC0415 (asyncio.timeout needs Python 3.11)

        return anyio.fail_after(seconds)


BLOCKING: Waiting = _Blocking()
AWAITING: Waiting = _Awaiting()


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits with `BLOCKING` only.

    Raises:
        RuntimeError: the coroutine suspended, so it waited for something else.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking client was given a transport that needs an event loop")
