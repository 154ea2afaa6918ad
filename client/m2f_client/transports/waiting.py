"""How a client waits: in its own thread, or in an event loop.

What lies between `Client` or `AsyncClient` and the network is written once, as coroutines that wait through a `Waiting`
only. With `BLOCKING` the work is done at once, so a coroutine never suspends and `run_blocking` has its result after
one step: there is no thread and no event loop behind a `Client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Waiting:
    """One of the two ways: `BLOCKING` or `AWAITING`.

    Attributes:
        asynchronous: whether libraries are used in their asyncio flavour.
    """

    asynchronous: bool

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the result of a library's function, awaited if the library is used in its asyncio flavour."""
        result = function(*args, **kwargs)
        return await result if self.asynchronous else result

    async def aside(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return the result of a function that blocks. An event loop goes on meanwhile."""
        return await asyncio.to_thread(function, *args, **kwargs) if self.asynchronous else function(*args, **kwargs)

    def limit(self, seconds: float | None) -> AbstractContextManager[Any]:
        """Return a context that raises TimeoutError after `seconds`. With `BLOCKING` it does nothing."""
        if not self.asynchronous:
            return nullcontext()
        import anyio  # noqa: PLC0415 (asyncio.timeout needs Python 3.11)

        return anyio.fail_after(seconds)


BLOCKING, AWAITING = Waiting(asynchronous=False), Waiting(asynchronous=True)


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits with `BLOCKING` only.

    Raises:
        RuntimeError: the coroutine suspended, so it waited for an event loop.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking client was given a transport that needs an event loop")
