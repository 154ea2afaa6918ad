"""The step inside Triton: its own statistics against the bare function in this process."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
from tritonclient.utils import shared_memory

from m2f.batch import stack_instances
from m2f.native import kernels
from m2f_server import serve

from . import ours
from .scenes import ROOT, Case

STEP, NOTHING = "mask2former_postprocess", "nothing"
DTYPES = {"float32": "FP32", "int32": "INT32"}
PHASES = ("queue", "compute_input", "compute_infer", "compute_output")
REGION = "m2f_benchmark"

# The same inputs and outputs without the work: what the Python backend itself takes.
NOTHING_MODEL = '''"""Answers that nothing was found."""

import numpy as np

from m2f_server.glue import respond

SHAPES = {
    "num_instances": ((1, 1), np.int32), "scores": ((1, 0), np.float32), "labels": ((1, 0), np.int32),
    "boxes": ((1, 0, 4), np.float32), "areas": ((1, 0), np.int32), "queries": ((1, 0), np.int32),
    "rle": ((1, 0), object), "size": ((1, 2), np.int32),
    "inner_rle": ((1, 0), object), "inner_size": ((1, 2), np.int32),
}


class TritonPythonModel:
    def execute(self, requests):
        return [respond(request, self.infer) for request in requests]

    def infer(self, arrays, parameters):
        return {name: np.zeros(*shape) for name, shape in SHAPES.items()}
'''


@dataclass(frozen=True)
class Row:
    """One way to send the logits of one case; medians of single requests.

    Attributes:
        case: which.
        model: the step, or the model that does nothing.
        transport: `grpc`, or `shared memory` for the inputs.
        instances: answered.
        round_trip_ms: the client's.
        queue_ms, compute_input_ms, compute_infer_ms, compute_output_ms: the server's statistics.
        outside_ms: the rest of the round trip: the client, the network and the server's front end.
        bare_ms: the function alone in this process, in turn with the requests.
        over_bare: compute_infer over bare.
    """

    case: str
    model: str
    transport: str
    instances: int
    round_trip_ms: float
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    outside_ms: float
    bare_ms: float
    over_bare: float


def measure(cases: list[Case], *, rounds: int) -> list[Row]:
    """Serve the step alone, send it the logits of each case both ways, and time the bare function in turn."""
    with (
        _repository() as repository,
        serve(model_repository=repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        tritonclient.grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        return [row for case in cases for row in _measure_case(client, case, rounds)]


@contextmanager
def _repository() -> Iterator[Path]:
    """A repository of the step and of the model that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        shutil.copytree(ROOT / "model_repository" / STEP, repository / STEP)
        config = (repository / STEP / "config.pbtxt").read_text()
        (repository / NOTHING / "1").mkdir(parents=True)
        (repository / NOTHING / "config.pbtxt").write_text(config.replace(STEP, NOTHING))
        (repository / NOTHING / "1/model.py").write_text(NOTHING_MODEL)
        yield repository


def _measure_case(client: Any, case: Case, rounds: int) -> list[Row]:
    arrays = _arrays(case)
    want = stack_instances([ours.run(case, kernels()[0])])
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    bare: list[float] = []
    with _shared(client, arrays) as shared:
        transports = {"grpc": _sent(arrays), "shared memory": shared}
        keys = [(model, transport) for model in (STEP, NOTHING) for transport in transports]
        for model, transport in keys:
            _check(client.infer(model, transports[transport], parameters=_parameters(case)), model, want)
        for _ in range(rounds):
            for model, transport in keys:
                sample = _request(client, model, transports[transport], _parameters(case))
                samples.setdefault((model, transport), []).append(sample)
            bare.append(_ms(lambda: stack_instances([ours.run(case, kernels()[0])])))
    bare_ms = statistics.median(bare)
    rows = []
    for (model, transport), requests in samples.items():
        median = {name: statistics.median(request[name] for request in requests) for name in requests[0]}
        over_bare = median["compute_infer_ms"] / bare_ms
        found = len(want["scores"][0])
        rows.append(Row(case.name, model, transport, found, **median, bare_ms=bare_ms, over_bare=over_bare))
    return rows


def _check(answer: Any, model: str, want: dict[str, npt.NDArray[Any]]) -> None:
    if model == STEP:
        np.testing.assert_array_equal(answer.as_numpy("rle"), want["rle"])
        np.testing.assert_allclose(answer.as_numpy("scores"), want["scores"], atol=1e-6)


def _request(client: Any, model: str, inputs: list[Any], parameters: dict[str, float]) -> dict[str, float]:
    """Time one request, and read what it added to the server's statistics."""
    before = _statistics(client, model)
    round_trip = _ms(lambda: client.infer(model, inputs, parameters=parameters))
    phases = {name: value - before[name] for name, value in _statistics(client, model).items()}
    return {"round_trip_ms": round_trip, **phases, "outside_ms": round_trip - sum(phases.values())}


def _statistics(client: Any, model: str) -> dict[str, float]:
    (statistics_of_model,) = client.get_inference_statistics(model).model_stats
    return {f"{phase}_ms": getattr(statistics_of_model.inference_stats, phase).ns / 1e6 for phase in PHASES}


def _parameters(case: Case) -> dict[str, float]:
    return {"score_threshold": case.settings.score_threshold}


def _arrays(case: Case) -> dict[str, npt.NDArray[Any]]:
    sizes = {name: np.array([size], np.int32) for name, size in case.shapes.items()}
    return {"cls_logits": case.cls_logits[None], "mask_logits": case.mask_logits[None], **sizes}


def _inputs(arrays: dict[str, npt.NDArray[Any]], fill: Callable[[Any, npt.NDArray[Any]], None]) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        inputs.append(tritonclient.grpc.InferInput(name, array.shape, DTYPES[str(array.dtype)]))
        fill(inputs[-1], array)
    return inputs


def _sent(arrays: dict[str, npt.NDArray[Any]]) -> list[Any]:
    return _inputs(arrays, lambda tensor, array: tensor.set_data_from_numpy(array))


@contextmanager
def _shared(client: Any, arrays: dict[str, npt.NDArray[Any]]) -> Iterator[list[Any]]:
    """Put the inputs into a system shared-memory region that the server maps."""
    total = sum(array.nbytes for array in arrays.values())
    key = f"/{REGION}_{os.getpid()}"
    region = shared_memory.create_shared_memory_region(REGION, key, total)
    offset = 0

    def place(tensor: Any, array: npt.NDArray[Any]) -> None:
        nonlocal offset
        shared_memory.set_shared_memory_region(region, [array], offset=offset)
        tensor.set_shared_memory(REGION, array.nbytes, offset=offset)
        offset += array.nbytes

    try:
        client.register_system_shared_memory(REGION, key, total)
        yield _inputs(arrays, place)
        client.unregister_system_shared_memory(REGION)
    finally:
        shared_memory.destroy_shared_memory_region(region)


def _ms(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return (time.perf_counter() - begin) * 1e3
