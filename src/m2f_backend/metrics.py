"""Prometheus metrics of the Python models, on Triton's own `/metrics`; docs/observability.md explains each metric.

Importable only inside Triton's Python backend, which provides `triton_python_backend_utils`.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import triton_python_backend_utils as pb_utils

from m2f.errors import ERROR_KINDS
from m2f.record import Record
from m2f_backend.stub_2_51 import never_freed

FAULT = "fault"  # the kind of an error that is not the client's
_SEND_EVERY_S = 1.0
_INSTANCE_BUCKETS = [0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """The metrics of a model. They are counted in memory and sent to the server once a second.

    Sending one metric is an exchange of messages with the server and takes 20 to 60 us. A process that is killed during
    the exchange cannot be loaded again and may end the server, so there are few exchanges.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._errors = _family("m2f_errors_total", "Requests that a step answered with an error", "COUNTER")
        self._seconds = _family("m2f_phase_seconds_total", "Time spent in each phase of a step", "COUNTER")
        self._images = _family("m2f_images_total", "Images decoded", "COUNTER")
        self._instances = _family("m2f_instances", "Instances found in an image", "HISTOGRAM")
        self._series: dict[tuple[Any, Labels], Any] = {}
        self._counted: dict[tuple[Any, Labels], float] = defaultdict(float)
        self._observed: list[int] = []
        self._lock = threading.Lock()  # protects the counts
        self._sending = threading.Lock()
        self._timer: threading.Timer | None = None
        for kind in (*ERROR_KINDS, FAULT):  # start at 0, so that the first error is an increase
            self._count(self._errors, 0, kind=kind, model=model)
        self.send()

    def error(self, kind: str) -> None:
        """Count an error of a kind."""
        self._count(self._errors, 1, kind=kind, model=self._model)

    def work(self, record: Record) -> None:
        """Count the phases, images and instances of a request."""
        for phase, seconds in record.seconds.items():
            self._count(self._seconds, seconds, model=self._model, phase=phase)
        for name, images in record.images.items():
            self._count(self._images, images, format=name.lower(), model=self._model)
        if record.instances:
            with self._lock:
                self._observed += record.instances
                self._start_timer()

    def send(self) -> None:
        """Send the counts. A model must send before it ends: a message in flight would block its end."""
        with self._sending:
            with self._lock:
                counted, self._counted = self._counted, defaultdict(float)
                observed, self._observed = self._observed, []
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = None
            for (family, labels), amount in counted.items():
                self._metric(family, labels).increment(amount)
            for count in observed:
                self._metric(self._instances, (("model", self._model),), buckets=_INSTANCE_BUCKETS).observe(count)

    def _count(self, family: Any, amount: float, **labels: str) -> None:
        with self._lock:
            self._counted[family, tuple(labels.items())] += amount
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(_SEND_EVERY_S, self.send)
            self._timer.daemon = True
            self._timer.start()

    def _metric(self, family: Any, labels: Labels, **options: Any) -> Any:
        if (family, labels) not in self._series:
            self._series[family, labels] = family.Metric(labels=dict(labels), **options)
        return self._series[family, labels]


def set_info(**labels: str) -> None:
    """Export the metric `m2f_info`: 1, with the labels given."""
    _family("m2f_info", "What serves: the package and the kernel", "GAUGE").Metric(labels=labels).set(1)


def set_engine_info(**labels: str) -> None:
    """Export the metric `m2f_engine_info`: 1, with the labels given."""
    _family("m2f_engine_info", "What computes the network of a model", "GAUGE").Metric(labels=labels).set(1)


def _family(name: str, description: str, kind: str) -> Any:
    kinds = pb_utils.MetricFamily
    return never_freed(kinds(name=name, description=description, kind=getattr(kinds, kind)))
