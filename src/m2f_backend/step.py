"""The base classes of the Python models: tensors in, arrays out, and an error for each request that fails.

Importable only inside Triton's Python backend, which provides `triton_python_backend_utils`.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from m2f.contract import CANARY_ID
from m2f.errors import InputError
from m2f.limits import MAX_PARAMETERS
from m2f.record import recorded
from m2f_backend.engine import Tensor, on_host
from m2f_backend.logfmt import logfmt
from m2f_backend.metrics import FAULT, Metrics, set_engine_info
from m2f_backend.stub_2_51 import let_siblings_begin

LOG_REQUESTS = "M2F_LOG_REQUESTS"  # environment variable; 1 logs every request, not only those that fail
Arrays = dict[str, npt.NDArray[Any]]
Outputs = Mapping[str, npt.NDArray[Any] | Callable[[], npt.NDArray[Any]]]


class _Model(ABC):
    """What both kinds of models share: configuration, metrics, log, errors.

    Triton creates one object for each instance of a model and calls `initialize`, `execute` and `finalize`.

    Attributes:
        parameters: the `parameters` block of the model's configuration.
        alone: whether no other step of a request runs at the same time.
    """

    alone = False

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the configuration; a subclass that prepares more calls `super().initialize(args)` first."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.parameters: dict[str, str] = {name: value["string_value"] for name, value in parameters.items()}
        self._model = args["model_name"]
        self._metrics = Metrics(self._model)
        self._logs_requests = os.environ.get(LOG_REQUESTS) == "1"

    @abstractmethod
    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response to each request, in order."""

    def finalize(self) -> None:
        """Send the counts that have not been sent yet."""
        self._metrics.send()

    def log(self, event: str, **fields: object) -> None:
        """Write an event to the server's log."""
        pb_utils.Logger.log_info(logfmt(event=event, model=self._model, **fields))

    def warn(self, message: str) -> None:
        """Write a warning to the server's log."""
        pb_utils.Logger.log_warn(logfmt(event="warning", model=self._model, message=message))

    def _done(self, requests: Sequence[Any], started: float) -> None:
        if self._logs_requests:
            for request in requests:
                self.log("answered", request_id=_request_id(request), ms=_milliseconds(started))

    def _failure(self, request: Any, error: Exception, started: float) -> Any:
        """Count and log an error, and return the response that carries it.

        An `InputError` is the client's: INVALID_ARGUMENT with its message. Any other error is ours: INTERNAL, and the
        log has its traceback.
        """
        kind: str
        message, more = str(error), {}
        if isinstance(error, InputError):
            kind, code, write = error.kind, pb_utils.TritonError.INVALID_ARG, pb_utils.Logger.log_info
        else:
            kind, code, write = FAULT, pb_utils.TritonError.INTERNAL, pb_utils.Logger.log_error
            message = f"{type(error).__name__}: {error}"
            more = {"trace": "".join(traceback.format_exception(error))}
        self._metrics.error(kind)
        fields = {"model": self._model, "kind": kind, "ms": _milliseconds(started), "message": message, **more}
        write(logfmt(event="error", request_id=_request_id(request), **fields))
        if not self.alone:
            let_siblings_begin()
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))


class StepModel(_Model):
    """A model that answers its requests one by one."""

    @abstractmethod
    def infer(self, arrays: Arrays, parameters: Mapping[str, Any]) -> Outputs:
        """Return the output arrays for a request's input arrays and parameters.

        In place of an array there may be a function that makes it. It is called if the request asks for the output.

        Raises:
            InputError: the client sent a wrong request; its other requests are not affected.
        """

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response to each request; a request that fails does not affect the others."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        started = time.perf_counter()
        with recorded() as record:
            try:
                outputs = self.infer(_inputs(request), _parameters(request))
                response = _response({name: _made(outputs[name]) for name in request.requested_output_names()})
                self._done([request], started)
            except Exception as error:  # uncaught, it would fail the other requests too
                response = self._failure(request, error, started)
        if _request_id(request) != CANARY_ID:
            self._metrics.work(record)
        return response


class BatchedModel(_Model):
    """A model that answers all requests of Triton's dynamic batcher with one inference; it takes no parameters."""

    alone = True  # the steps behind it wait for its answer

    def loaded(self, facts: Mapping[str, str]) -> None:
        """Write what computes to the server's log, and to the metric `m2f_engine_info`."""
        self.log("loaded", **facts)
        set_engine_info(model=self._model, **facts)

    @abstractmethod
    def infer(self, arrays: Arrays) -> Mapping[str, Tensor]:
        """Return the output tensors for input arrays whose first dimension is the batch.

        Raises:
            InputError: a client sent a wrong request.
        """

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response to each request.

        The batcher collects only requests whose tensors agree in all but the batch dimension. If their common
        inference fails, each request is tried alone, so that a bad request fails alone.
        """
        started = time.perf_counter()
        try:
            inputs = [_inputs(request) for request in requests]
            sizes = [len(next(iter(arrays.values()))) for arrays in inputs]
            outputs = self.infer({name: np.concatenate([arrays[name] for arrays in inputs]) for name in inputs[0]})
            responses = [_response(part) for part in _split(outputs, sizes)]
        except Exception as error:  # uncaught, it would fail every request of the batch
            if len(requests) > 1:
                return [self.execute([request])[0] for request in requests]
            return [self._failure(requests[0], error, started)]
        self._done(requests, started)
        return responses


def _request_id(request: Any) -> str:
    try:
        return str(request.request_id())
    except UnicodeDecodeError:  # Triton does not check that an id is UTF-8
        return "?"


def _milliseconds(started: float) -> str:
    return f"{(time.perf_counter() - started) * 1e3:.1f}"


def _parameters(request: Any) -> dict[str, Any]:
    try:
        text = request.parameters() or "{}"
        if len(text) <= MAX_PARAMETERS:
            return json.loads(text)  # type: ignore[no-any-return]
    except ValueError as error:  # Triton does not check that parameters are UTF-8
        raise InputError(f"the request's parameters cannot be read: {error}", kind="parameter") from None
    message = f"the request's parameters are too long: {len(text)} characters as JSON; allowed are {MAX_PARAMETERS}"
    raise InputError(message, kind="parameter")


def _inputs(request: Any) -> Arrays:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _split(outputs: Mapping[str, Tensor], sizes: Sequence[int]) -> list[Mapping[str, Tensor]]:
    """Return the outputs of each request. Only those of a single request can stay on a device."""
    if len(sizes) == 1:
        return [outputs]
    edges = np.cumsum(sizes)[:-1]
    parts = {name: np.split(on_host(tensor), edges) for name, tensor in outputs.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(sizes))]


def _made(output: Any) -> npt.NDArray[Any]:
    return output() if callable(output) else output  # type: ignore[no-any-return]


def _response(outputs: Mapping[str, Tensor]) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[_tensor(name, value) for name, value in outputs.items()])


def _tensor(name: str, value: Tensor) -> Any:
    if isinstance(value, np.ndarray):
        return pb_utils.Tensor(name, np.ascontiguousarray(value))
    return pb_utils.Tensor.from_dlpack(name, value)
