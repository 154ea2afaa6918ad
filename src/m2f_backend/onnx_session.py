"""Open an ONNX graph in ONNX Runtime, for the engines of `--model-config-name=cpu`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort


def open_session(args: Mapping[str, str], parameters: Mapping[str, str]) -> ort.InferenceSession:
    """Load the `model.onnx` of a model.

    Args:
        args: the arguments of the model's `initialize`.
        parameters: the model's parameters. `intra_op_num_threads` is the number of threads of one inference; 0 means
            one for each core.

    Raises:
        ValueError: the graph's inputs and outputs are not those of the configuration.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_num_threads", 0)) or _threads()
    path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    _check_names(session, json.loads(args["model_config"]))
    return session


def _check_names(session: ort.InferenceSession, config: Mapping[str, Any]) -> None:
    wanted, there = _names(config["input"]), {tensor.name for tensor in session.get_inputs()}
    if wanted != there:
        raise ValueError(f"model.onnx has the inputs {_listed(there)}; wanted are {_listed(wanted)}")
    wanted, there = _names(config["output"]), {tensor.name for tensor in session.get_outputs()}
    if not wanted <= there:
        raise ValueError(f"model.onnx has the outputs {_listed(there)}; wanted are {_listed(wanted)}")


def _names(tensors: Iterable[Mapping[str, Any]]) -> set[str]:
    return {tensor["name"] for tensor in tensors}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _threads() -> int:
    """Return how many threads to use: the number of cores, or 0 if this process may use all of them.

    With 0, ONNX Runtime ties a thread to each core of the machine. That is wrong under `taskset` or a cpuset.
    """
    cores = len(os.sched_getaffinity(0))
    return cores if cores < (os.cpu_count() or 1) else 0
