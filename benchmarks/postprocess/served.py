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
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import shared_memory

from m2f.batch import stack_instances
from m2f.kernels import BEST
from m2f_server import serve

from . import ours
from .scenes import ROOT, Case

STEP, NOTHING = "mask2former_postprocess", "nothing"
DTYPES = {"float32": "FP32", "int32": "INT32"}
PHASES = ("queue", "compute_input", "compute_infer", "compute_output")
REGION = "m2f_benchmark"

Arrays = dict[str, npt.NDArray[Any]]
Samples = dict[tuple[str, str], list[dict[str, float]]]

# The same inputs and outputs without the work: what the Python backend itself takes.
NOTHING_MODEL = '''"""Answers that nothing was found."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

from m2f_backend.step import StepModel


class TritonPythonModel(StepModel):
    def initialize(self, args):
        super().initialize(args)
        self.outputs = {
            output["name"]: np.zeros(
                [1, *(max(0, side) for side in output["dims"])], pb_utils.triton_string_to_numpy(output["data_type"])
            )
            for output in json.loads(args["model_config"])["output"]
        }

    def infer(self, arrays, parameters):
        return self.outputs
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
        work_over_bare: the same without what the model that does nothing takes.
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
    work_over_bare: float


def measure(cases: list[Case], *, rounds: int) -> list[Row]:
    """Serve the step alone, send it the logits of each case both ways, and time the bare function in turn."""
    with (
        _repository() as repository,
        serve(model_repository=repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        tritonclient.grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        return [row for case in cases for row in _measure_case(client, case, rounds, server.access.headers)]


@contextmanager
def _repository() -> Iterator[Path]:
    """A repository of the step and of the model that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        shutil.copytree(ROOT / "model_repository" / STEP, repository / STEP)
        (repository / NOTHING / "1").mkdir(parents=True)
        (repository / NOTHING / "1/model.py").write_text(NOTHING_MODEL)
        config = text_format.Parse((repository / STEP / "config.pbtxt").read_text(), ModelConfig())
        for name in ("class_names", "thing_classes"):  # of the embedded model
            del config.parameters[name]
        for config.name in (STEP, NOTHING):
            (repository / config.name / "config.pbtxt").write_text(text_format.MessageToString(config))
        yield repository


def _measure_case(client: Any, case: Case, rounds: int, admin: dict[str, str]) -> list[Row]:
    want, samples, bare_ms = _sample(client, case, rounds, admin)
    medians = {
        key: {name: statistics.median(request[name] for request in requests) for name in requests[0]}
        for key, requests in samples.items()
    }
    return [
        Row(
            case.name,
            model,
            transport,
            len(want["scores"][0]),
            **median,
            bare_ms=bare_ms,
            over_bare=median["compute_infer_ms"] / bare_ms,
            work_over_bare=(median["compute_infer_ms"] - medians[NOTHING, transport]["compute_infer_ms"]) / bare_ms,
        )
        for (model, transport), median in medians.items()
    ]


def _sample(client: Any, case: Case, rounds: int, admin: dict[str, str]) -> tuple[Arrays, Samples, float]:
    """Check the answers, then take turns: our outputs, every request by model and transport, the bare median."""
    arrays, parameters = _arrays(case), {"score_threshold": case.settings.score_threshold}
    want = _bare(case)
    bare: list[float] = []
    with _shared(client, arrays, admin) as shared:
        transports = {"grpc": _sent(arrays), "shared memory": shared}
        keys = [(model, transport) for model in (STEP, NOTHING) for transport in transports]
        for model, transport in keys:
            _check(client.infer(model, transports[transport], parameters=parameters), model, want)
        samples: Samples = {key: [] for key in keys}
        for _ in range(rounds):
            for model, transport in keys:
                samples[model, transport].append(_request(client, model, transports[transport], parameters))
            bare.append(_ms(lambda: _bare(case)))
    return want, samples, statistics.median(bare)


def _bare(case: Case) -> Arrays:
    """What the step computes for a request."""
    return stack_instances([ours.run(case, BEST)])


def _check(answer: Any, model: str, want: Arrays) -> None:
    if model == STEP:
        np.testing.assert_array_equal(answer.as_numpy("rle"), want["rle"])
        np.testing.assert_allclose(answer.as_numpy("scores"), want["scores"], atol=1e-6)


def _request(client: Any, model: str, inputs: list[Any], parameters: dict[str, float]) -> dict[str, float]:
    """Time one request, and read what it added to the server's statistics."""
    count, before = _statistics(client, model)
    round_trip = _ms(lambda: client.infer(model, inputs, parameters=parameters))
    counted, after = _statistics(client, model)
    while counted == count:  # the server answers first and counts then
        counted, after = _statistics(client, model)
    phases = {name: after[name] - before[name] for name in before}
    return {"round_trip_ms": round_trip, **phases, "outside_ms": round_trip - sum(phases.values())}


def _statistics(client: Any, model: str) -> tuple[int, dict[str, float]]:
    """How many requests the server has counted, and the milliseconds of each phase in all."""
    (of_model,) = client.get_inference_statistics(model).model_stats
    phases = {f"{phase}_ms": getattr(of_model.inference_stats, phase).ns / 1e6 for phase in PHASES}
    return of_model.inference_count, phases


def _arrays(case: Case) -> Arrays:
    sizes = {name: np.array([size], np.int32) for name, size in case.shapes.items()}
    return {"cls_logits": case.cls_logits[None], "mask_logits": case.mask_logits[None], **sizes}


def _inputs(arrays: Arrays, fill: Callable[[Any, npt.NDArray[Any]], None]) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        inputs.append(tritonclient.grpc.InferInput(name, array.shape, DTYPES[str(array.dtype)]))
        fill(inputs[-1], array)
    return inputs


def _sent(arrays: Arrays) -> list[Any]:
    return _inputs(arrays, lambda tensor, array: tensor.set_data_from_numpy(array))


@contextmanager
def _shared(client: Any, arrays: Arrays, admin: dict[str, str]) -> Iterator[list[Any]]:
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
        client.register_system_shared_memory(REGION, key, total, headers=admin)
        yield _inputs(arrays, place)
        client.unregister_system_shared_memory(REGION, headers=admin)
    finally:
        shared_memory.destroy_shared_memory_region(region)


def _ms(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return (time.perf_counter() - begin) * 1e3
