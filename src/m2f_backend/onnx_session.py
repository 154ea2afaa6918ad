"""A graph on ONNX Runtime, for the engines of `--model-config-name=cpu`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort


def open_session(args: Mapping[str, str], parameters: Mapping[str, str]) -> ort.InferenceSession:
    """Load `model.onnx` of a version of a model.

    Args:
        args: those of the model's `initialize`.
        parameters: of its configuration; `intra_op_num_threads` is how many threads share an inference, 0 all cores.

    Raises:
        ValueError: it has not the inputs and outputs of the configuration. Left to the warm-up to find out, this
            would make Triton 2.51 end with a SIGSEGV, one time in two.
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
    """Return 0, with which ONNX Runtime ties a thread to each core of the machine, also those that are not ours.

    Where the process may use only some of them (a container's cpuset, `taskset`), return how many.
    """
    cores = len(os.sched_getaffinity(0))
    return cores if cores < (os.cpu_count() or 1) else 0
