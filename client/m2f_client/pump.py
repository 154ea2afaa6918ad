"""Work on many items at once: results in order, memory bounded, and a clean stop on Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2  # items taken for each worker: a slow item holds back at most this many results of every worker
_STOPPING = b"\nm2f: finishing the requests in flight; press Ctrl-C again to stop at once\n"


@contextmanager
def in_order(work: Callable[[T], R], items: Iterable[T], *, concurrency: int, stop: Event) -> Iterator[Iterator[R]]:
    """Give an iterator over `work(item)` for each item, in the order of the items, each as soon as possible.

    At most `2 x concurrency` items are taken and not yet yielded. The end of the block waits for the calls in flight.

    Args:
        work: called in threads. Its exceptions are raised by the iterator, in the item's turn.
        items: taken in the calling thread.
        concurrency: number of calls of `work` at once.
        stop: once set, no further item is begun; calls in flight finish and their results are yielded.
    """
    with ThreadPoolExecutor(concurrency, thread_name_prefix="m2f-predict") as pool:
        try:
            yield _results(pool, work, items, ahead=_AHEAD * concurrency, stop=stop)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _results(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], *, ahead: int, stop: Event
) -> Iterator[R]:
    def begin(item: T) -> list[R]:
        return [] if stop.is_set() else [work(item)]

    waiting: deque[Future[list[R]]] = deque()
    for item in items:
        if stop.is_set():
            break
        waiting.append(pool.submit(begin, item))
        while waiting and (len(waiting) >= ahead or waiting[0].done()):
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


@contextmanager
def stopped_by_signals(stop: Event) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM set `stop`. The first signal also restores the default handler, so a second one kills."""

    def on_signal(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)
        os.write(2, _STOPPING)  # not print: a signal handler may interrupt another print

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
