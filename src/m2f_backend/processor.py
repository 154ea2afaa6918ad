"""The engine of `--model-config-name=cpu`: which library computes, with how many threads and streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f_backend.cores import usable_cores
from m2f_backend.engine import LARGE, ByImage, ByShape, Engine, Shapes, Tensor, on_host
from m2f_backend.onnx_session import VERSION as ORT_VERSION
from m2f_backend.onnx_session import OnnxNetwork, open_network

AUTO, OPENVINO, ONNX_RUNTIME = "auto", "openvino", "onnxruntime"
_PRECISIONS = ("float32", "bfloat16")
_THREADS_OF_LARGE = 4  # of a stream, in a large graph
_EXACT, _HALF = 1e-3, 0.2  # largest mean difference as a part of the mean logit; measured: 1e-6, and 0.07 in bfloat16

Arrays = dict[str, npt.NDArray[Any]]
Run = Callable[[Arrays], Mapping[str, Tensor]]
Warn = Callable[[str], None]
Facts = Mapping[str, str]
"""What an engine is, for the log and the metrics: `engine`, `version`, `precision`, `threads`, `streams`."""


@dataclass(frozen=True)
class _Plan:
    """What the parameters and the machine say."""

    path: Path
    config: Mapping[str, Any]
    engine: str
    precision: str
    threads: int
    streams: int
    room: int  # compiled shapes of a graph of free size

    @property
    def instances(self) -> int:
        """Number of instances of the model."""
        return max(1, sum(int(group["count"]) for group in self.config.get("instance_group", ())))

    @property
    def fixed(self) -> Shapes | None:
        """The shapes of one image; None if the configuration leaves a side free."""
        shapes = tuple((tensor["name"], (1, *map(int, tensor["dims"]))) for tensor in self.config["input"])
        return None if any(-1 in shape for _, shape in shapes) else shapes


def open_engine(args: Mapping[str, str], parameters: Mapping[str, str], warn: Warn) -> tuple[Engine, Facts]:
    """Load the `model.onnx` of a model, and say what was chosen.

    Args:
        args: the arguments of the model's `initialize`.
        parameters: the model's parameters. `engine`: the library that computes, `openvino` or `onnxruntime`; `auto`:
            OpenVINO if it is installed and its answer equals ONNX Runtime's, else ONNX Runtime. `precision`: `float32`
            or `bfloat16`. `threads`: number of threads; 0: one for each core that may be used. `streams`: number of
            images that are computed at a time; 0: one for each thread, or for four threads of a graph above 64 MB.
            `compiled_shapes`: number of input sizes for which a graph of free size is compiled.
        warn: called with the reason if `auto` does not use OpenVINO though it is installed.

    Raises:
        ValueError: a parameter is wrong, or the graph's inputs and outputs are not those of the configuration; or
            `engine` is `openvino` and it is not installed, does not take the graph, or answers differently.
    """
    plan = _plan(args, parameters)
    everything = open_network(plan.path, plan.config, threads=plan.threads)
    if plan.engine != ONNX_RUNTIME:
        try:
            return _on_openvino(plan, everything, warn)
        except Exception as error:
            if plan.engine == OPENVINO:
                raise ValueError(f"engine: openvino cannot serve this model: {error}") from error
            warn(f"ONNX Runtime serves this model, because OpenVINO cannot: {error}")
    return _on_onnx_runtime(plan, everything)


def _plan(args: Mapping[str, str], parameters: Mapping[str, str]) -> _Plan:
    config = json.loads(args["model_config"])
    path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
    threads = _number(parameters, "threads") or usable_cores()
    large = path.stat().st_size >= LARGE
    streams = _number(parameters, "streams") or (max(1, threads // _THREADS_OF_LARGE) if large else threads)
    return _Plan(
        path=path,
        config=config,
        engine=_word(parameters, "engine", (AUTO, OPENVINO, ONNX_RUNTIME)),
        precision=_word(parameters, "precision", _PRECISIONS),
        threads=threads,
        streams=min(streams, threads, max(1, int(config.get("max_batch_size", 0)))),
        room=_number(parameters, "compiled_shapes"),
    )


def _word(parameters: Mapping[str, str], key: str, allowed: tuple[str, ...]) -> str:
    """Return the value of a parameter; the first allowed one is the default."""
    value = parameters.get(key, allowed[0])
    if value not in allowed:
        raise ValueError(f"{key}: {value!r} is unknown; allowed: {', '.join(allowed)}")
    return value


def _number(parameters: Mapping[str, str], key: str) -> int:
    value = parameters.get(key, "0")
    if not value.isdecimal():
        raise ValueError(f"{key}: {value!r} is no number; allowed: 0 and above")
    return int(value)


def _on_onnx_runtime(plan: _Plan, alone: OnnxNetwork) -> tuple[Engine, Facts]:
    if plan.precision != "float32":
        raise ValueError(f"precision: {plan.precision} needs OpenVINO; ONNX Runtime computes in float32 on a processor")
    busy = alone
    if plan.streams > 1:
        busy = open_network(plan.path, plan.config, threads=plan.threads // plan.streams)
    return _described(
        plan, ByImage(alone, busy, streams=plan.streams, instances=plan.instances), ONNX_RUNTIME, ORT_VERSION, "float32"
    )


def _on_openvino(plan: _Plan, reference: OnnxNetwork, warn: Warn) -> tuple[Engine, Facts]:
    from m2f_backend.openvino_network import VERSION, OpenVinoNetwork, is_half  # noqa: PLC0415  # it may be missing

    half = is_half(plan.path)
    if half and plan.engine == AUTO:
        raise ValueError("the graph is in half precision, which OpenVINO computes in float32; engine: openvino insists")

    def compile_for(shapes: Shapes, streams: int = 1) -> OpenVinoNetwork:
        network = OpenVinoNetwork(
            plan.path, shapes, reference.names,
            threads=plan.threads, streams=streams, bfloat16=plan.precision == "bfloat16",
        )  # fmt: skip
        tolerance = _HALF if half or network.precision != "float32" else _EXACT
        _check_equal(network.run, reference.run, _noise(plan.config, shapes), tolerance)
        return network

    if plan.fixed:
        alone = compile_for(plan.fixed)
        busy = compile_for(plan.fixed, plan.streams) if plan.streams > 1 else alone
        engine = ByImage(alone, busy, streams=plan.streams, instances=plan.instances)
        return _described(plan, engine, OPENVINO, VERSION, alone.precision)

    def compile_or_warn(shapes: Shapes) -> OpenVinoNetwork:
        try:
            return compile_for(shapes)
        except Exception as error:
            warn(f"ONNX Runtime serves images of the shape {shapes}, because OpenVINO cannot: {error}")
            raise

    compiler = ThreadPoolExecutor(1)
    by_shape = ByShape(compile_or_warn, general=reference, room=plan.room, compiler=compiler)
    return _described(plan, ByImage(by_shape, by_shape, streams=1), OPENVINO, VERSION, plan.precision)


def _described(plan: _Plan, engine: ByImage, library: str, version: str, precision: str) -> tuple[Engine, Facts]:
    return engine, {
        "engine": library,
        "version": version,
        "precision": precision,
        "threads": str(plan.threads),
        "streams": str(engine.streams),
    }


def _check_equal(run: Run, reference: Run, inputs: Arrays, tolerance: float) -> None:
    """Compare two networks, which is also the first inference, the slow one.

    Raises:
        ValueError: their answers differ by more than rounding.
    """
    wanted = reference(inputs)
    for name, tensor in run(inputs).items():
        logits = on_host(wanted[name])
        difference, size = np.abs(on_host(tensor) - logits).mean(), np.abs(logits).mean()
        if not difference <= tolerance * size:  # NaN is not
            raise ValueError(f"{name} differs from ONNX Runtime's by {difference:.2g} on average, of {size:.2g}")


def _noise(config: Mapping[str, Any], shapes: Shapes) -> Arrays:
    """Return inputs of noise, in which every part of the network has something to do."""
    rng = np.random.default_rng(0)
    bytes_ = {tensor["name"] for tensor in config["input"] if tensor["data_type"] == "TYPE_UINT8"}
    return {
        name: rng.integers(0, 256, shape, np.uint8) if name in bytes_ else rng.standard_normal(shape, np.float32)
        for name, shape in shapes
    }
