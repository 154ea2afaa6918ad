"""The figures of a benchmark: what clients got with a number of requests in flight, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m2f_client.bench.load import Window
from m2f_client.bench.server import Step
from m2f_client.step_times import Spent, StepTime, steps_between


@dataclass(frozen=True)
class Level:
    """The figures with one number of requests in flight. Times are milliseconds of an image.

    Attributes:
        in_flight: number of callers, each with one request in flight.
        complete: False if the benchmark was stopped meanwhile.
        images: number of answered requests.
        images_per_second: throughput.
        p50_ms, p99_ms: percentiles of the whole call, from the encoded image to the result.
        mean_ms: mean of the whole call: `client_ms + trip_ms`.
        client_ms: what the client spent on making the request and reading the answer.
        trip_ms: from the request's departure to the answer's arrival: `network_ms + server_ms`.
        network_ms: network, and the server's front end; None without statistics of the server.
        server_ms: from the request's arrival at the model to its answer; None without statistics of the server.
        steps: mean times of the steps; empty without statistics of the server.
        counted: requests that the model answered meanwhile, those of other clients included; None without statistics.
        bytes_sent, bytes_received: mean bytes of the request's and the answer's tensors.
        client_cores: processor seconds that the client spent a second.
        failed: number of failed requests by the message.
    """

    in_flight: int
    complete: bool
    images: int
    images_per_second: float
    p50_ms: float
    p99_ms: float
    mean_ms: float
    client_ms: float
    trip_ms: float
    network_ms: float | None
    server_ms: float | None
    steps: tuple[StepTime, ...]
    counted: int | None
    bytes_sent: float
    bytes_received: float
    client_cores: float
    failed: Mapping[str, int]


@dataclass(frozen=True)
class Images:
    """The images that a benchmark sent.

    Attributes:
        count: number of images.
        found: number of images that the sources had.
        bytes: mean bytes.
        read_ms: mean milliseconds that reading and transcoding took, once and before anything was timed.
        transcoded: number of images that the client sent as PNG, because the server does not read their format.
        height, width: of the image with the median number of pixels; None if no answer tells sizes.
        instances: mean number of instances found; None if no answer tells it.
    """

    count: int
    found: int
    bytes: float
    read_ms: float
    transcoded: int
    height: int | None
    width: int | None
    instances: float | None


@dataclass(frozen=True)
class Measured:
    """All that a benchmark found.

    Attributes:
        url: address of the server.
        model: name of the public model.
        outputs: names of the outputs asked for.
        on_this_machine: whether the server runs on the client's machine.
        images: the images.
        steps: the steps that a request runs; empty if the server does not say.
        levels: the figures, in the order of measuring.
        blind: why there are no times by step; empty if there are.
    """

    url: str
    model: str
    outputs: tuple[str, ...]
    on_this_machine: bool
    images: Images
    steps: tuple[Step, ...]
    levels: tuple[Level, ...]
    blind: str


def level_of(
    in_flight: int,
    window: Window,
    *,
    complete: bool,
    model: Spent | None,
    before: Mapping[str, Spent],
    after: Mapping[str, Spent],
    steps: Sequence[Step],
) -> Level:
    """Return the figures of a window with at least one answer.

    Args:
        in_flight: number of callers.
        window: what they had.
        complete: whether the window was as long as asked for.
        model: what the model did meanwhile; None if the server does not say.
        before: statistics at the begin of the window.
        after: statistics at its end.
        steps: the steps that a request runs.
    """
    whole, trips = (np.array([getattr(call, name) for call in window.calls]) * 1e3 for name in ("seconds", "trip_s"))
    server_ms = model.total_ns / model.requests / 1e6 if model is not None else None
    return Level(
        in_flight=in_flight,
        complete=complete,
        images=len(whole),
        images_per_second=window.images_per_second,
        p50_ms=float(np.percentile(whole, 50)),
        p99_ms=float(np.percentile(whole, 99)),
        mean_ms=float(whole.mean()),
        client_ms=float((whole - trips).mean()),
        trip_ms=float(trips.mean()),
        network_ms=max(0.0, float(trips.mean()) - server_ms) if server_ms is not None else None,
        server_ms=server_ms,
        steps=steps_between(before, after, [step.name for step in steps]) if model is not None else (),
        counted=model.requests if model is not None else None,
        bytes_sent=float(np.mean([call.sent for call in window.calls])),
        bytes_received=float(np.mean([call.received for call in window.calls])),
        client_cores=window.client_cores,
        failed=window.failed,
    )
