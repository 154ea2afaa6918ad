"""How a client waits: in its own thread, or in an event loop.

What lies between `Client` or `AsyncClient` and the network is written once, as coroutines that wait through a `Waiting`
only. With `BLOCKING` the work is done at once, so a coroutine never suspends and `run_blocking` has its result after
one step: there is no thread and no event loop behind a `Client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, TypeVar

from m2f_client.pump import in_order

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

    async def each(
        self,
        work: Callable[[T], Coroutine[Any, Any, None]],
        items: Iterable[T],
        *,
        concurrency: int,
        done: Callable[[], object],
    ) -> None:
        """Await `work(item)` for each item, several at once: in threads, or in tasks of the event loop.

        The first error ends the others. With `BLOCKING` those in flight are waited for; in an event loop they are
        cancelled.

        Args:
            work: a coroutine function that waits through this `Waiting` only.
            items: what to do, in this order.
            concurrency: number of items in work at once.
            done: called after each item, in the thread or the event loop of the caller.
        """
        if self.asynchronous:
            await _in_tasks(work, items, concurrency, done)
            return
        with in_order(lambda item: run_blocking(work(item)), items, concurrency=concurrency, stop=Event()) as ends:
            for _ in ends:
                done()

    def limit(self, seconds: float | None) -> AbstractContextManager[Any]:
        """Return a context that raises TimeoutError after `seconds`. With `BLOCKING` it does nothing."""
        if not self.asynchronous:
            return nullcontext()
        import anyio  # noqa: PLC0415 (asyncio.timeout needs Python 3.11)

        return anyio.fail_after(seconds)


BLOCKING, AWAITING = Waiting(asynchronous=False), Waiting(asynchronous=True)


async def _in_tasks(
    work: Callable[[T], Coroutine[Any, Any, None]], items: Iterable[T], concurrency: int, done: Callable[[], object]
) -> None:
    left = iter(items)

    async def one_after_the_other() -> None:
        for item in left:  # all tasks take from the same iterator
            await work(item)
            done()

    tasks = [asyncio.create_task(one_after_the_other()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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


def in_thread(function: Callable[..., T], seconds: float | None, *args: Any, **kwargs: Any) -> T:
    """Return what a function returns in a thread of its own.

    Args:
        function: what to call.
        seconds: longest wait; None waits for ever.
        *args: arguments of the function.
        **kwargs: arguments of the function.

    Raises:
        TimeoutError: the function is not done in time. It goes on; what it returns is dropped.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:  # raised where the result is waited for
            future.set_exception(error)

    Thread(target=work, daemon=True, name="m2f-wait").start()
    try:
        return future.result(seconds)
    except FutureTimeout as error:  # TimeoutError itself from Python 3.11 on
        raise TimeoutError from error
