"""Open the engine of a model: on a device, or on the processor."""

from __future__ import annotations

from collections.abc import Mapping

from m2f_backend import onnx_session, processor
from m2f_backend.engine import Engine
from m2f_backend.onnx_session import PROVIDERS
from m2f_backend.processor import Facts, Warn


def open_engine(args: Mapping[str, str], parameters: Mapping[str, str], warn: Warn) -> tuple[Engine, Facts]:
    """Load the `model.onnx` of a model, and say what was chosen.

    Args:
        args: the arguments of the model's `initialize`.
        parameters: the model's parameters. With `execution_providers`, ONNX Runtime computes on a device
            (`onnx_session.open_engine`); else a library computes on the processor (`processor.open_engine`).
        warn: called with the reason if OpenVINO is not used.

    Raises:
        ValueError: a parameter is wrong, or the graph's inputs and outputs are not those of the configuration.
    """
    if PROVIDERS not in parameters:
        return processor.open_engine(args, parameters, warn)
    engine = onnx_session.open_engine(args, parameters)
    return engine, {"engine": "onnxruntime", "version": onnx_session.VERSION, "providers": parameters[PROVIDERS]}
