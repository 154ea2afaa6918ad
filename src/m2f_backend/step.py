"""What every Python model of the repository shares: tensors in, arrays out, and each request its own error.

Importable only inside Triton's Python backend, which provides `triton_python_backend_utils`.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from m2f.contract import CANARY_ID
from m2f.errors import InputError
from m2f.limits import MAX_PARAMETERS
from m2f.record import recorded
from m2f_backend.logfmt import logfmt
from m2f_backend.metrics import FAULT, Metrics

LOG_REQUESTS = "M2F_LOG_REQUESTS"  # environment: 1 logs every request, not only those that fail
Arrays = dict[str, npt.NDArray[Any]]
Infer = Callable[[Arrays, Mapping[str, Any]], Arrays]


class Step:
    """An instance of a model: its configuration, metrics and log.

    Args:
        args: those of the model's `initialize`.

    Attributes:
        parameters: the `parameters` block of the model's configuration.
        metrics: what it counts.
    """

    def __init__(self, args: Mapping[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.parameters: dict[str, str] = {name: value["string_value"] for name, value in parameters.items()}
        self._model = args["model_name"]
        self.metrics = Metrics(self._model)
        self._logs_requests = os.environ.get(LOG_REQUESTS) == "1"

    def close(self) -> None:
        """Send what is left to send; to be called in the model's `finalize`."""
        self.metrics.send()

    def log(self, event: str, **fields: object) -> None:
        """Write a line to the server's log."""
        pb_utils.Logger.log_info(logfmt(event=event, model=self._model, **fields))

    def warn(self, message: str) -> None:
        """Write to the server's log what somebody should look after."""
        pb_utils.Logger.log_warn(logfmt(event="warning", model=self._model, message=message))

    def respond(self, request: Any, infer: Infer) -> Any:
        """Answer one request with `infer(input arrays, request parameters)`.

        An `InputError` becomes INVALID_ARGUMENT with its message; anything else is a fault of ours: it is logged
        with its trace and answered as INTERNAL. Neither touches the other requests.
        """
        started = time.perf_counter()
        with recorded() as record:
            try:
                response = _answer(infer(_inputs(request), _parameters(request)))
                self._done([request], started)
            except Exception as error:  # a model must answer; the stub would take every request down with it
                response = self._failure([request], error, started)[0]
        if _request_id(request) != CANARY_ID:
            self.metrics.work(record)
        return response

    def respond_together(self, requests: Sequence[Any], infer: Callable[[Arrays], Arrays]) -> list[Any]:
        """Answer what the dynamic batcher collected with one `infer` over all of it.

        The batcher brings together only requests whose tensors agree in all but the batch dimension. Where it fails,
        each is tried alone, so that one bad request fails alone.
        """
        started = time.perf_counter()
        try:
            inputs = [_inputs(request) for request in requests]
            sizes = [len(next(iter(arrays.values()))) for arrays in inputs]
            outputs = infer({name: np.concatenate([arrays[name] for arrays in inputs]) for name in inputs[0]})
            edges = np.cumsum(sizes)[:-1]
            parts = {name: np.split(array, edges) for name, array in outputs.items()}
            responses = [_answer({name: part[i] for name, part in parts.items()}) for i in range(len(requests))]
        except Exception as error:
            if len(requests) > 1:
                return [self.respond_together([request], infer)[0] for request in requests]
            return self._failure(requests, error, started)
        self._done(requests, started)
        return responses

    def _done(self, requests: Sequence[Any], started: float) -> None:
        if self._logs_requests:
            for request in requests:
                self.log("answered", request_id=_request_id(request), ms=_milliseconds(started))

    def _failure(self, requests: Sequence[Any], error: Exception, started: float) -> list[Any]:
        """Count and log an error for each of its requests, and answer them with it."""
        kind: str
        message, more = str(error), {}
        if isinstance(error, InputError):
            kind, code, write = error.kind, pb_utils.TritonError.INVALID_ARG, pb_utils.Logger.log_info
        else:
            kind, code, write = FAULT, pb_utils.TritonError.INTERNAL, pb_utils.Logger.log_error
            message = f"{type(error).__name__}: {error}"
            more = {"trace": "".join(traceback.format_exception(error))}
        fields = {"model": self._model, "kind": kind, "ms": _milliseconds(started), "message": message, **more}
        for request in requests:
            self.metrics.error(kind)
            write(logfmt(event="error", request_id=_request_id(request), **fields))
        answer = pb_utils.TritonError(message, code)
        return [pb_utils.InferenceResponse(output_tensors=[], error=answer) for _ in requests]


def _request_id(request: Any) -> str:
    try:
        return str(request.request_id())
    except UnicodeDecodeError:  # Triton hands on what is not UTF-8
        return "?"


def _milliseconds(started: float) -> str:
    return f"{(time.perf_counter() - started) * 1e3:.1f}"


def _parameters(request: Any) -> dict[str, Any]:
    try:
        text = request.parameters() or "{}"
        if len(text) <= MAX_PARAMETERS:
            return json.loads(text)  # type: ignore[no-any-return]
    except ValueError as error:  # Triton hands on what is not UTF-8
        raise InputError(f"the request's parameters cannot be read: {error}", kind="parameter") from None
    message = f"the request's parameters are too long: {len(text)} characters as JSON; allowed are {MAX_PARAMETERS}"
    raise InputError(message, kind="parameter")


def _inputs(request: Any) -> Arrays:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _answer(outputs: Arrays) -> Any:
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)
