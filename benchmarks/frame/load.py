"""Keep a number of requests in flight and see what comes of it."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable

MIN_ANSWERS = 10


def closed_loop(
    send: Callable[[int], object], *, in_flight: int, seconds: float, warm_up_s: float = 0.5
) -> dict[str, float]:
    """Send requests from threads, each of which waits for its answer, and time them.

    Args:
        send: sends request number 0, 1, 2, ... and returns when its answer is there. It is called from several threads.
        in_flight: number of threads.
        seconds: length of the measurement; longer until there are `MIN_ANSWERS` answers.
        warm_up_s: seconds before the measurement, whose answers are not counted.

    Returns:
        `images_s`, `p50_ms`, `p99_ms` and `answers`.

    Raises:
        Exception: of the first request that failed.
    """
    numbers = itertools.count()
    ended: list[tuple[float, float]] = []  # when, and after how long
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                begun = time.perf_counter()
                send(next(numbers))
                now = time.perf_counter()
                ended.append((now, now - begun))
        except BaseException as error:  # raised in the caller's thread
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(in_flight)]
    for thread in threads:
        thread.start()
    try:
        stop.wait(warm_up_s)
        begin, skipped = time.perf_counter(), len(ended)
        stop.wait(seconds)
        while len(ended) - skipped < MIN_ANSWERS and not stop.wait(0.05):
            pass
        end = time.perf_counter()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    times = [took * 1e3 for when, took in ended if begin <= when <= end]
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"images_s": len(times) / (end - begin), "p50_ms": cuts[49], "p99_ms": cuts[98], "answers": len(times)}
