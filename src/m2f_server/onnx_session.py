"""A graph on ONNX Runtime, for the engines of `--model-config-name=cpu`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort


def open_session(args: Mapping[str, str], parameters: Mapping[str, str]) -> ort.InferenceSession:
    """Load `model.onnx` of a version of a model.

    Args:
        args: those of the model's `initialize`.
        parameters: of its configuration; `intra_op_num_threads` is how many threads share an inference, 0 all cores.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_num_threads", 0)) or _threads()
    path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _threads() -> int:
    """Return 0, with which ONNX Runtime ties a thread to each core of the machine, also those that are not ours.

    Where the process may use only some of them (a container's cpuset, `taskset`), return how many.
    """
    cores = len(os.sched_getaffinity(0))
    return cores if cores < (os.cpu_count() or 1) else 0
