"""Networks on ONNX Runtime: on a GPU for `--model-config-name=gpu`, and on the processor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from m2f_backend.cores import usable_cores
from m2f_backend.engine import ByShape, Engine, Shapes, Tensor, check_shapes

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
VERSION: str = ort.__version__
_HOST = "cpu"
PROVIDERS = "execution_providers"


class OnnxNetwork:
    """A loaded graph, whose inputs and outputs are bound to memory; any number of threads may call it (`Engine`).

    Args:
        session: the loaded graph.
        names: names of the outputs to give.
        place: where the outputs are to be: `cpu` or `cuda`, and the device's number.

    Attributes:
        session: the loaded graph.
        names: names of the outputs.
    """

    def __init__(
        self, session: ort.InferenceSession, names: tuple[str, ...], place: tuple[str, int] = (_HOST, 0)
    ) -> None:
        self.session, self.names, self._place = session, names, place
        self._shapes = {tensor.name: _fixed(tensor.shape) for tensor in session.get_inputs()}

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
        """Compute a batch (see `Engine.run`)."""
        check_shapes(inputs, self._shapes)
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self.names:
            binding.bind_output(name, *self._place)
        self.session.run_with_iobinding(binding)
        return dict(zip(self.names, binding.get_outputs_as_ortvaluevector(), strict=True))


@dataclass(frozen=True)
class OnnxEngine:
    """The engine of a device (`Engine`).

    Attributes:
        session: the graph that takes all shapes.
        network: what computes: this session, or those compiled by shape.
    """

    session: ort.InferenceSession
    network: Engine

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
        """Compute a batch (see `Engine.run`)."""
        return self.network.run(inputs)


def open_network(path: Path, config: Mapping[str, Any], *, threads: int) -> OnnxNetwork:
    """Load a graph that takes all shapes, for the processor.

    Args:
        path: the ONNX file.
        config: the model's configuration.
        threads: number of threads of one inference.

    Raises:
        ValueError: the graph's inputs and outputs are not those of the configuration.
    """
    session = ort.InferenceSession(path, _options(threads), providers=[_PROVIDERS[_HOST]])
    return OnnxNetwork(session, check_names(session, config))


def open_engine(args: Mapping[str, str], parameters: Mapping[str, str]) -> OnnxEngine:
    """Load the `model.onnx` of a model, for a device or the processor.

    Args:
        args: the arguments of the model's `initialize`.
        parameters: the model's parameters. `execution_providers`: what computes, best first: `cpu`, `cuda`,
            `tensorrt`; every node runs on the first that has it. `compiled_shapes`: number of input shapes for which
            the graph is compiled (`ByShape`); 0: one graph for all. `device_outputs`: `true` leaves outputs on the
            device. `threads`: threads of one inference on a processor; 0: one for each core that may be used.

    Raises:
        ValueError: the graph's inputs and outputs are not those of the configuration; or a provider is unknown, is not
            in the installed ONNX Runtime, or does not start here.
    """
    path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
    config = json.loads(args["model_config"])
    threads = int(parameters.get("threads", 0)) or usable_cores()
    device = int(args.get("model_instance_device_id", 0))
    wanted = _wanted(parameters.get(PROVIDERS, _HOST))
    providers = [(_PROVIDERS[name], _provider_options(name, device, config)) for name in wanted]
    if wanted != [_HOST]:
        ort.preload_dlls()  # CUDA's libraries from NVIDIA's wheels, if these are installed
    on_device = wanted != [_HOST] and parameters.get("device_outputs") == "true"
    place = ("cuda", device) if on_device else (_HOST, 0)

    def load(sides: Mapping[str, int]) -> ort.InferenceSession:
        return ort.InferenceSession(path, _options(threads, sides), providers=providers, enable_fallback=0)

    session = load({})
    if session.get_providers()[0] != providers[0][0]:  # ONNX Runtime only logs it, and would compute on the processor
        raise ValueError(f"{PROVIDERS}: {wanted[0]} does not start here; ONNX Runtime's log above says why")
    names = check_names(session, config)
    free = {tensor.name: tensor.shape for tensor in session.get_inputs()}

    def compile_for(shapes: Shapes) -> Engine:
        sides = (pair for name, shape in shapes for pair in zip(free[name], shape, strict=True))
        return OnnxNetwork(load({name: size for name, size in sides if isinstance(name, str)}), names, place)

    general = OnnxNetwork(session, names, place)
    room = int(parameters.get("compiled_shapes", 0))
    return OnnxEngine(session, ByShape(compile_for, general=general, room=room) if room else general)


def check_names(session: ort.InferenceSession, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Compare the graph with the configuration; return the names of the configuration's outputs.

    Raises:
        ValueError: the inputs or outputs differ.
    """
    wanted, there = _names(config["input"]), {tensor.name for tensor in session.get_inputs()}
    if wanted != there:
        raise ValueError(f"model.onnx has the inputs {_listed(there)}; wanted are {_listed(wanted)}")
    wanted, there = _names(config["output"]), {tensor.name for tensor in session.get_outputs()}
    if not wanted <= there:
        raise ValueError(f"model.onnx has the outputs {_listed(there)}; wanted are {_listed(wanted)}")
    return tuple(tensor["name"] for tensor in config["output"])


def _options(threads: int, sides: Mapping[str, int] | None = None) -> ort.SessionOptions:
    """Return the options of a session with some threads, and with fixed sizes for some free sides of its inputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the other steps need the cores
    for name, size in (sides or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    return options


def _fixed(shape: Iterable[int | str | None]) -> tuple[int | None, ...]:
    """Return a graph's shape with None for the sides that it leaves free."""
    return tuple(side if isinstance(side, int) else None for side in shape)


def _wanted(text: str) -> list[str]:
    """Return the names of `execution_providers`, each known and in the installed ONNX Runtime."""
    names = [name.strip() for name in text.split(",")]
    there = ort.get_available_providers()
    for name in names:
        if name not in _PROVIDERS:
            raise ValueError(f"{PROVIDERS}: {name!r} is unknown; allowed: {', '.join(_PROVIDERS)}")
        if _PROVIDERS[name] not in there:
            raise ValueError(
                f"{PROVIDERS}: {name} is not in this ONNX Runtime {ort.__version__}, which has "
                f"{', '.join(there)}: pip install 'm2f[gpu]' in an environment without the package onnxruntime"
            )
    return names


def _provider_options(name: str, device: int, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a provider."""
    if name == "cuda":
        return {
            "device_id": str(device),
            "use_tf32": "0",  # the graph decides the precision: a float32 graph computes in float32
            "cudnn_conv_algo_search": "HEURISTIC",  # trying every algorithm takes seconds at each new input size
        }
    if name == "tensorrt":
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2f" / "tensorrt"
        return {
            "device_id": str(device),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "1",
            **_profile(config),
        }
    return {}


def _profile(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the batches that TensorRT builds for, if the input's size is fixed; else it builds for what comes."""
    (tensor, *more) = config["input"]
    sides = [int(side) for side in tensor.get("dims", [-1])]
    if more or -1 in sides:
        return {}
    image = "x".join(map(str, sides))
    batches = {"min": 1, "opt": 1, "max": int(config["max_batch_size"])}
    return {f"trt_profile_{kind}_shapes": f"{tensor['name']}:{batch}x{image}" for kind, batch in batches.items()}


def _names(tensors: Iterable[Mapping[str, Any]]) -> set[str]:
    return {tensor["name"] for tensor in tensors}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
