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
import time
from typing import TypeVar

T = TypeVar("T")
_SCHEDULED_S = 0.02  # Triton takes microseconds, and longer if its thread has to wait for a core


def never_freed(family: T) -> T:
    """Return a metric family that is kept until the process ends.

    All processes of a model share the series of a name and labels, but each process counts only its own references.
    The first process that frees a series takes it from the others, which then write into freed memory. Instances, an
    old and a new version, and a reloaded model are such processes.

    Versions: all up to mid-2026. Source: triton-inference-server/core, src/metric_family.cc, `MetricFamily::Remove`.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(family))
    return family


def let_siblings_begin() -> None:
    """Wait until Triton has scheduled the steps that run beside this one; called before a step answers an error.

    If a step fails while a step beside it is not yet scheduled, the ensemble counts one request too few, frees the
    request too soon, and the server ends with a SIGSEGV: without this, within 30 requests for scores and panoptic with
    an unknown class. A step that fails later does no such harm, but the request is never released.

    Versions: up to 2.68 (26.04). Source: triton-inference-server/core, src/ensemble_scheduler/ensemble_scheduler.cc,
    `ScheduleSteps`; mended by https://github.com/triton-inference-server/core/pull/483
    """
    time.sleep(_SCHEDULED_S)
