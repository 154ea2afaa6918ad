"""Export how long the instances of each model were at work.

Triton's compute counters add the time of a batch once for each request in the batch, so they are no measure of work.
Its statistics have the times by size of the batch, each batch once.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import Metric
from prometheus_client.registry import Collector

from m2f_backend.calls import CallError
from m2f_server.missed import CANNOT_LOOK

Busy = Mapping[tuple[str, str], float]
"""Seconds by name and version of a model."""


class BusyMetric(Collector):
    """The metric `m2f_busy_seconds_total`. It keeps its last values while no server answers.

    Args:
        read: returns the seconds so far of each model of the current server.
    """

    def __init__(self, read: Callable[[], Busy]) -> None:
        self._read = read
        self._seconds: Busy = {}

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        metric = Metric(
            "m2f_busy_seconds", "Time that the instances of a model were at work, each batch once", "counter"
        )
        for (model, version), seconds in self._seconds.items():
            metric.add_sample("m2f_busy_seconds_total", {"model": model, "version": version}, seconds)
        yield metric

    @contextmanager
    def fresh(self, period_s: float) -> Iterator[None]:
        """Read the seconds at intervals for the length of the `with` block, in a thread: a scrape waits for no server.

        Args:
            period_s: seconds between two reads.
        """
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(period_s):
                try:
                    self._seconds = self._read()
                except (CallError, *CANNOT_LOOK):  # the supervisor finds out what is wrong with the server
                    continue

        threading.Thread(target=run, daemon=True).start()
        try:
            yield
        finally:
            stop.set()  # and nobody waits for a read that waits for a server
