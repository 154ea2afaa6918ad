"""The pump: work on many things at once, results in order, memory bounded, and a clean way to stop."""

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

_AHEAD = 2  # windows: a slow item holds back no more than this many results for each worker
_STOPPING = b"\nm2f: finishing what is in flight; once more to stop at once\n"


def in_order(work: Callable[[T], R], items: Iterable[T], *, concurrency: int, stop: Event) -> Iterator[R]:
    """Yield `work(item)` for each item, in the order of the items and as soon as that allows.

    Items are taken by need: no more than twice `concurrency` are held, worked on or waiting for their turn.

    Args:
        work: called in threads; what it raises is raised here.
        items: taken in the calling thread.
        concurrency: calls of `work` at once.
        stop: when it is set no further item is begun; those in flight end, and are yielded.
    """

    def begin(item: T) -> list[R]:
        return [] if stop.is_set() else [work(item)]

    waiting: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="m2f-predict") as pool:
        try:
            for item in items:
                if stop.is_set():
                    break
                waiting.append(pool.submit(begin, item))
                while waiting and (len(waiting) >= _AHEAD * concurrency or waiting[0].done()):
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def stopped_by_signals(stop: Event) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM set `stop`; the second one ends the process as if nobody had listened."""

    def on_signal(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)
        os.write(2, _STOPPING)  # a print could meet another one half-way

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
