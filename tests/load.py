"""A load generator for the tests that break things: every request is accounted for, and none can hang unnoticed."""

import contextlib
import http.client
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
import tritonclient.http
from kserve import DTYPES, connect, image_input
from tritonclient.utils import InferenceServerException

from m2f.contract import PUBLIC_MODEL

OK, WRONG, ERROR, HUNG = "ok", "wrong", "error", "hung"
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),  # a connection each, as of clients that know nothing of each other
    ("grpc.max_reconnect_backoff_ms", 200),  # seconds by default: a server that is back would be seen late
    ("grpc.max_receive_message_length", -1),
]


@dataclass(frozen=True)
class Case:
    """A request and the answer that is right."""

    name: str
    model: str
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...]
    expected: dict[str, np.ndarray]
    parameters: dict[str, Any] = field(default_factory=dict)

    def is_answered_by(self, got: dict[str, np.ndarray | None]) -> bool:
        """Bit for bit."""
        pairs = ((got.get(name), self.expected[name]) for name in self.outputs)
        return all(a is not None and a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def learn(
    server, images: Sequence[bytes], *outputs: Sequence[str], model: str = PUBLIC_MODEL, **parameters
) -> list[Case]:
    """Make a case of each image and each group of outputs; what an unharmed server answers is right."""
    protocol = connect(server, "grpc")
    cases = []
    for (i, data), names in itertools.product(enumerate(images), outputs):
        inputs = image_input(data)
        expected = protocol.infer(model, inputs, names, **parameters)
        cases.append(Case(f"{i}: {' '.join(names)}", model, inputs, tuple(names), expected, parameters))
    protocol.client.close()
    return cases


@dataclass
class Outcome:
    """What became of one request; times are of `time.monotonic()`, `due` when it should have started."""

    id: str
    case: str
    due: float
    start: float
    end: float = 0.0
    kind: str = OK
    status: str = ""  # of an error: "503", "StatusCode.UNAVAILABLE", or the class of what broke the connection
    message: str = ""

    @property
    def seconds(self) -> float:
        """From when it was due: a generator that falls behind must not make the server look fast."""
        return self.end - self.due


class Load:
    """Sends cases, in turn, from `workers` threads with a connection each, until it is told to stop.

    Args:
        url: `host:port` of the protocol.
        protocol: `grpc` or `http`.
        workers: how many requests may be under way at once.
        rate: requests a second (open loop, evenly spaced); None sends the next when the last is answered.
        timeout: seconds after which a request counts as hung.
        pause: seconds a worker waits after an error (closed loop), so that a server that is away is not stormed.
    """

    def __init__(
        self,
        url: str,
        cases: Sequence[Case],
        *,
        protocol: str = "grpc",
        workers: int = 2,
        rate: float | None = None,
        timeout: float = 20.0,
        pause: float = 0.02,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._send = {"grpc": _grpc, "http": _http}[protocol]
        self._url, self._cases, self._rate, self._timeout, self._pause = url, cases, rate, timeout, pause
        self._stopped = threading.Event()
        self._numbers = itertools.count()
        self._started = 0.0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]

    def start(self) -> "Load":
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> list[Outcome]:
        """Send nothing more, wait for what is under way, and return all outcomes in the order of their starts."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self.outcomes.sort(key=lambda outcome: outcome.start)
        return self.outcomes

    def __enter__(self) -> "Load":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _work(self) -> None:
        with contextlib.closing(self._send(self._url, self._timeout)) as sender:
            while not self._stopped.is_set():
                number = next(self._numbers)
                due = self._wait_for(number)
                if self._stopped.is_set():
                    return
                outcome = _one(sender, self._cases[number % len(self._cases)], number, due)
                self.outcomes.append(outcome)
                if outcome.kind != OK and self._rate is None:
                    time.sleep(self._pause)

    def _wait_for(self, number: int) -> float:
        """Wait until a request is due, and return when that is."""
        if self._rate is None:
            return time.monotonic()
        due = self._started + number / self._rate
        self._stopped.wait(max(0.0, due - time.monotonic()))
        return due


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line: how many of each kind, latency of the right ones, and the errors by message."""
    if not outcomes:
        return "no request"
    kinds = Counter(outcome.kind for outcome in outcomes)
    span = max(outcome.end for outcome in outcomes) - min(outcome.start for outcome in outcomes)
    good = [outcome.seconds * 1e3 for outcome in outcomes if outcome.kind == OK] or [0.0]
    p50, p99 = np.percentile(good, [50, 99])
    errors = Counter(f"{o.status} {o.message[:100]}" for o in outcomes if o.kind != OK)
    return (
        f"{len(outcomes)} requests in {span:.1f} s: "
        + ", ".join(f"{kinds[kind]} {kind}" for kind in (OK, ERROR, WRONG, HUNG))
        + f"; {kinds[OK] / max(span, 1e-9):.1f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        + "".join(f"\n  {count} x {error}" for error, count in errors.most_common(20))
    )


def _one(sender: Any, case: Case, number: int, due: float) -> Outcome:
    """Send one request and judge the answer."""
    outcome = Outcome(id=f"load-{number}-{random.getrandbits(32):08x}", case=case.name, due=due, start=time.monotonic())
    try:
        answered_id, got = sender.infer(case, outcome.id)
        if answered_id != outcome.id or not case.is_answered_by(got):
            outcome.kind, outcome.message = WRONG, f"{answered_id} {got}"
    except TimeoutError as error:
        outcome.kind, outcome.message = HUNG, str(error)
    except InferenceServerException as error:
        outcome.kind, outcome.status, outcome.message = ERROR, str(error.status()), error.message() or ""
    except (OSError, http.client.HTTPException) as error:
        outcome.kind, outcome.status, outcome.message = ERROR, type(error).__name__, str(error)
    outcome.end = time.monotonic()
    return outcome


def _tensors(module: Any, case: Case) -> tuple[list[Any], list[Any]]:
    inputs = []
    for name, array in case.inputs.items():
        tensor = module.InferInput(name, list(array.shape), DTYPES[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs, [module.InferRequestedOutput(name) for name in case.outputs]


class _grpc:  # noqa: N801 (a constructor in a table)
    """One gRPC connection."""

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        self._client = tritonclient.grpc.InferenceServerClient(url, channel_args=_CHANNEL)
        self.close: Callable[[], None] = self._client.close

    def infer(self, case: Case, request_id: str) -> tuple[str, dict[str, np.ndarray]]:
        inputs, outputs = _tensors(tritonclient.grpc, case)
        began = time.monotonic()
        try:
            result = self._client.infer(
                case.model,
                inputs,
                outputs=outputs,
                request_id=request_id,
                client_timeout=self._timeout,
                parameters=case.parameters or None,
            )
        except InferenceServerException as error:
            # the server has a DEADLINE_EXCEEDED of its own, which is an answer
            ours = time.monotonic() - began >= 0.99 * self._timeout
            if ours and error.status() == str(grpc.StatusCode.DEADLINE_EXCEEDED):
                raise TimeoutError(f"no answer within {self._timeout:g} s") from error
            raise
        return result.get_response().id, {name: result.as_numpy(name) for name in case.outputs}


class _http:  # noqa: N801
    """One HTTP connection, kept alive; http.client because its timeout bounds every wait."""

    def __init__(self, url: str, timeout: float) -> None:
        self._connection = http.client.HTTPConnection(url, timeout=timeout)
        self.close: Callable[[], None] = self._connection.close

    def infer(self, case: Case, request_id: str) -> tuple[str, dict[str, np.ndarray]]:
        make = tritonclient.http.InferenceServerClient
        inputs, outputs = _tensors(tritonclient.http, case)
        body, header = make.generate_request_body(
            inputs, outputs=outputs, request_id=request_id, parameters=case.parameters or None
        )
        headers = {"Inference-Header-Content-Length": str(header)} if header is not None else {}
        try:
            self._connection.request("POST", f"/v2/models/{case.model}/infer", body, headers)
            response = self._connection.getresponse()
            content = response.read()
        except Exception:
            self._connection.close()  # what is left of a broken answer must not become the next one's
            raise
        if response.status != http.client.OK:
            raise InferenceServerException(content.decode(errors="replace"), str(response.status))
        length = response.getheader("Inference-Header-Content-Length")
        result = make.parse_response_body(content, header_length=int(length) if length else None)
        return result.get_response().get("id", ""), {name: result.as_numpy(name) for name in case.outputs}
