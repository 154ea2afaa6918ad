"""The Prometheus metrics of the Python steps, on Triton's own `/metrics`; docs/observability.md explains each.

Importable only inside Triton's Python backend, which provides `triton_python_backend_utils`. An update is a message
to the server and costs 20 to 60 us (measured), so a step makes few of them per request.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from m2f.contract import ERROR_KINDS
from m2f.record import Record

FAULT = "fault"  # the kind of an error that is not the client's
_INSTANCE_BUCKETS = [0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]


class StepMetrics:
    """What every step counts: errors by kind, seconds by phase, images by format."""

    def __init__(self, model: str) -> None:
        self._errors = _Counters("m2f_errors_total", "Requests that a step answered with an error", {"model": model})
        self._seconds = _Counters("m2f_phase_seconds_total", "Time spent in each phase of a step", {"model": model})
        self._images = _Counters("m2f_images_total", "Images decoded", {})
        for kind in (*ERROR_KINDS, FAULT):  # from 0 on, so that the first error is an increase, too
            self._errors.add(0, kind=kind)

    def error(self, kind: str) -> None:
        """Count an error."""
        self._errors.add(1, kind=kind)

    def work(self, record: Record) -> None:
        """Count what the work for a request consisted of."""
        for phase, seconds in record.seconds.items():
            self._seconds.add(seconds, phase=phase)
        for name, images in record.images.items():
            self._images.add(images, format=name.lower())


class InstanceMetrics:
    """How many instances an image has."""

    def __init__(self) -> None:
        family = _family("m2f_instances", "Instances found in an image", "HISTOGRAM")
        self._histogram = family.Metric(labels={}, buckets=_INSTANCE_BUCKETS)

    def add(self, counts: Iterable[int]) -> None:
        """Count the instances of each image of a request."""
        for count in counts:
            self._histogram.observe(count)


def set_info(**labels: str) -> None:
    """Export `m2f_info`: 1, with what is said of the server in its labels."""
    _family("m2f_info", "What serves: the package and the kernel", "GAUGE").Metric(labels=labels).set(1)


class _Counters:
    """The counters of a family; each is made when it is first needed."""

    def __init__(self, name: str, description: str, labels: Mapping[str, str]) -> None:
        self._family = _family(name, description, "COUNTER")
        self._labels = labels
        self._metrics: dict[tuple[str, ...], Any] = {}

    def add(self, amount: float, **labels: str) -> None:
        values = tuple(labels.values())
        if values not in self._metrics:
            self._metrics[values] = self._family.Metric(labels={**self._labels, **labels})
        self._metrics[values].increment(amount)


def _family(name: str, description: str, kind: str) -> Any:
    """Return a metric family, never to be freed.

    Instances of a model, the old and the new version of one, and a step that was killed and is loaded again share
    their series: Triton makes one of families of a name and of metrics of the same labels. But each process counts
    only its own references, and the first to free its own takes the series from the others, which go on to write
    into it (`MetricFamily::Remove` in Triton's metric_family.cc, up to mid-2026). So none is freed while the server
    lives, and what was counted stays.
    """
    family = pb_utils.MetricFamily(name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(family))
    return family
