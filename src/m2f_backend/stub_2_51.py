"""Workarounds in the Python models for Triton 2.51 (24.10). Try to remove each one when you change the server.

Three more are settings rather than code:

- Only the queue of preprocessing has a `default_queue_policy`. A queue with a policy forms no batch ahead of time and
  loses wake-ups: a request then waits 0.5 s or until the next one arrives. So `backpressure` keeps the other queues
  short.
  Versions: all up to mid-2026. Source: triton-inference-server/core, src/dynamic_batch_scheduler.cc.
- `onnx_session` compares the graph with the configuration as it loads, because a failing `model_warmup` ends the server
  with a SIGSEGV one time in two. Version: 2.51, measured. Source: core, src/backend_model_instance.cc.
- The extra `server` allows NumPy < 2 only: under NumPy 2 the Python backend sends wrong empty tensors. Fixed in 24.11:
  https://github.com/triton-inference-server/python_backend/pull/384
"""

from __future__ import annotations

import ctypes
from typing import TypeVar

T = TypeVar("T")


def never_freed(family: T) -> T:
    """Return a metric family that is kept until the process ends.

    All processes of a model share the series of a name and labels, but each process counts only its own references.
    The first process that frees a series takes it from the others, which then write into freed memory. Instances, an
    old and a new version, and a reloaded model are such processes.

    Versions: all up to mid-2026. Source: triton-inference-server/core, src/metric_family.cc, `MetricFamily::Remove`.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(family))
    return family
