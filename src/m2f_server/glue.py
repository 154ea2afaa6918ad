"""What every Python model of the repository shares: tensors in, arrays out, and each request its own error.

Importable only inside Triton's Python backend, which provides `triton_python_backend_utils`.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from m2f.contract import InputError

Arrays = dict[str, npt.NDArray[Any]]
Infer = Callable[[Arrays, Mapping[str, Any]], Arrays]


def repository_parameters(args: Mapping[str, str]) -> dict[str, str]:
    """Return the `parameters` block of the model's configuration, from `initialize`'s args."""
    parameters = json.loads(args["model_config"])["parameters"]
    return {name: value["string_value"] for name, value in parameters.items()}


def log(line: str) -> None:
    """Write a line to the server's log."""
    pb_utils.Logger.log_info(line)


def respond(request: Any, infer: Infer) -> Any:
    """Answer one request with `infer(input arrays, request parameters)`.

    An `InputError` becomes INVALID_ARGUMENT with its message; anything else is a fault of ours: it is logged
    with its trace and answered as INTERNAL. Neither touches the other requests.
    """
    try:
        return _answer(infer(_inputs(request), json.loads(request.parameters() or "{}")))
    except Exception as error:  # a model must answer; the stub would take every request down with it
        return _failure(error)


def respond_together(requests: Sequence[Any], infer: Callable[[Arrays], Arrays]) -> list[Any]:
    """Answer what the dynamic batcher collected with one `infer` over all of it.

    The batcher brings together only requests whose tensors agree in all but the batch dimension.
    """
    try:
        inputs = [_inputs(request) for request in requests]
        sizes = [len(next(iter(arrays.values()))) for arrays in inputs]
        outputs = infer({name: np.concatenate([arrays[name] for arrays in inputs]) for name in inputs[0]})
        edges = np.cumsum(sizes)[:-1]
        parts = {name: np.split(array, edges) for name, array in outputs.items()}
        return [_answer({name: part[i] for name, part in parts.items()}) for i in range(len(requests))]
    except Exception as error:
        return [_failure(error) for _ in requests]


def _inputs(request: Any) -> Arrays:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _answer(outputs: Arrays) -> Any:
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _failure(error: Exception) -> Any:
    if isinstance(error, InputError):
        return _error_response(str(error), pb_utils.TritonError.INVALID_ARG)
    pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    return _error_response(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)


def _error_response(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
