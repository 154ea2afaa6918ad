"""The load of a benchmark: callers that each send one image after the other, and how long every call took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

from m2f.errors import M2FError
from m2f_client.bench.pictures import Pictures
from m2f_client.client import Client
from m2f_client.client_errors import InvalidRequest, UnreadableImage
from m2f_client.transports.protocol import Array, Request, Transport

_OF_THE_IMAGE = (InvalidRequest, UnreadableImage)  # the same request would be refused again
_PAUSE_S = 0.1  # of a caller whose request failed: a server in trouble gets no hail of requests
_FEW = 3  # a lone caller gives up after so many failures in a row


@dataclass(frozen=True)
class Question:
    """What is asked of each image.

    Attributes:
        model: name of the public model.
        outputs: names of the outputs.
        parameters: request parameters.
        timeout: seconds for a request.
    """

    model: str
    outputs: tuple[str, ...]
    parameters: Mapping[str, Any]
    timeout: float


@dataclass(frozen=True)
class Call:
    """One answered request.

    Attributes:
        seconds: time of the whole call, from the encoded image to the result.
        trip_s: the part of `seconds` between the request's departure and the answer's arrival.
        sent: bytes of the request's tensors.
        received: bytes of the answer's tensors.
        side: height and width of the image; None if the answer does not say.
        instances: number of instances; None if the answer does not say.
    """

    seconds: float
    trip_s: float
    sent: int
    received: int
    side: tuple[int, int] | None
    instances: int | None


@dataclass(frozen=True)
class Window:
    """What callers had from a server in some seconds.

    Attributes:
        calls: all answered requests.
        images_per_second: sum of the callers' rates; a caller's own time ends with its last request.
        failed: number of failed requests by the message.
        client_cores: processor seconds of this process for each second.
    """

    calls: tuple[Call, ...]
    images_per_second: float
    failed: Mapping[str, int]
    client_cores: float


class Load:
    """Callers that ask one server about images.

    Args:
        transport: the connection that all callers share.
        question: what to ask.
        pictures: the images. An image that the server refuses is sent no more.
        stop: ends the load. It is also set when the server is lost: every caller failed, one after the other.

    Attributes:
        lost: the last error of a lost server; None otherwise.
        answered: requests answered so far.
    """

    def __init__(self, transport: Transport, question: Question, pictures: Pictures, stop: Event) -> None:
        self.transport, self.question, self.pictures, self.stop = transport, question, pictures, stop
        self.lost: M2FError | None = None
        self.answered = 0
        self._in_a_row = 0
        self._lock = Lock()

    def first(self) -> None:
        """Send images until the server answers one, which does not count, or has refused all.

        Raises:
            M2FError: the server does not answer.
        """
        caller = _Caller(self)
        while len(self.pictures) and not self.stop.is_set():
            if caller.ask() is not None:
                self.answered = 0
                return

    def succeeded(self) -> None:
        """Count an answer."""
        with self._lock:
            self.answered += 1
            self._in_a_row = 0

    def failed(self, error: M2FError, callers: int) -> None:
        """Count a failure, and end the load if the server is lost."""
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row >= max(_FEW, callers):
                self.lost = error
                self.stop.set()


class Callers:
    """A fixed number of callers, each with one request in flight. A context manager.

    Args:
        load: what they share.
        count: their number.
    """

    def __init__(self, load: Load, count: int) -> None:
        self._load = load
        self._callers = [_Caller(load, count) for _ in range(count)]
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="m2f-bench")

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def warm_up(self) -> None:
        """Let each caller have one answer that does not count: connections open, and the server's queues fill."""
        self._each(lambda caller: caller.work(0.0))
        for caller in self._callers:
            caller.forget()

    def work(self, seconds: float) -> Window:
        """Keep all callers asking for some seconds, and until their last answers have come."""
        started, cpu = time.perf_counter(), time.process_time()
        self._each(lambda caller: caller.work(seconds))
        failed: Counter[str] = sum((caller.failures for caller in self._callers), Counter())
        return Window(
            calls=tuple(call for caller in self._callers for call in caller.calls),
            images_per_second=sum(len(caller.calls) / (caller.ended - started) for caller in self._callers),
            failed=dict(failed.most_common()),
            client_cores=(time.process_time() - cpu) / (time.perf_counter() - started),
        )

    def _each(self, work: Any) -> None:
        for future in [self._pool.submit(work, caller) for caller in self._callers]:
            future.result()


class _Caller:
    """Sends one image after the other, and remembers how long the answers took."""

    def __init__(self, load: Load, callers: int = 1) -> None:
        self._load, self._of = load, callers
        self._meter = _Meter(load.transport)
        self._client = Client(transport=self._meter, model=load.question.model, timeout=load.question.timeout)
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.calls: list[Call] = []
        self.failures: Counter[str] = Counter()
        self.ended = float("inf")

    def work(self, seconds: float) -> None:
        """Send images for some seconds, at least one."""
        end = time.perf_counter() + seconds
        while not self._load.stop.is_set():
            try:
                call = self.ask()
            except M2FError as error:
                self.failures[Exception.__str__(error)] += 1  # without the request's id
                self._load.failed(error, self._of)
                self._load.stop.wait(_PAUSE_S)
            else:
                if call is not None:
                    self.calls.append(call)
                elif not len(self._load.pictures):
                    return
            self.ended = time.perf_counter()
            if self.ended >= end:
                return

    def ask(self) -> Call | None:
        """Send the next image; return None if the server refuses it, or if none is left.

        Raises:
            M2FError: the request failed for another reason.
        """
        picture = self._load.pictures.take()
        if picture is None:
            return None
        question = self._load.question
        started = time.perf_counter()
        try:
            result = self._client.predict(picture.data, outputs=question.outputs, **question.parameters)
        except _OF_THE_IMAGE as error:
            self._load.pictures.refuse(picture, Exception.__str__(error))
            return None
        seconds = time.perf_counter() - started
        self._load.succeeded()
        side = result.size if "size" in result.outputs else None
        instances = len(result) if "num_instances" in result.outputs else None
        return Call(seconds, self._meter.trip_s, self._meter.sent, self._meter.received, side, instances)


class _Meter:
    """A transport that measures the last request of one caller."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.url = transport.url
        self.trip_s, self.sent, self.received = 0.0, 0, 0

    async def infer(self, request: Request) -> dict[str, Array]:
        started = time.perf_counter()
        answer = await self._transport.infer(request)
        self.trip_s = time.perf_counter() - started
        self.sent, self.received = _bytes(request.inputs.values()), _bytes(answer.values())
        return answer

    async def close(self) -> None:
        """Leave the connection open: all callers share it."""


def _bytes(arrays: Any) -> int:
    """Return the bytes of tensors on the wire: an element of a BYTES tensor has its length before it."""
    return sum(
        sum(4 + len(element) for element in array.flat) if array.dtype == object else array.nbytes for array in arrays
    )
