"""ONNX -> TensorRT engine: with `tensorrt` on a GPU, or ahead of time with TensorRT-RTX on any machine.

Both have one builder API. The network is strongly typed, so the engine computes in the types of the graph (see
`m2f_export.precision`). No plugin library is loaded, so a graph that parses here needs no plugin anywhere. TensorRT
itself runs only on a machine with a GPU; TensorRT-RTX builds without a GPU, for RTX GPUs.
"""

from __future__ import annotations

import importlib
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from onnx import TensorProto, helper

from m2f_export.export_errors import ExportError

TENSORRT, TENSORRT_RTX = "TensorRT", "TensorRT-RTX"
_MODULES = {"tensorrt": TENSORRT, "tensorrt_rtx": TENSORRT_RTX, "tensorrt_rtx_bindings": TENSORRT_RTX}
_OLDEST = 10  # the first TensorRT with strongly typed networks and UINT8 inputs for them
SUPPORT_MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html"

Range = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The input sizes that an engine takes, each (smallest, usual, largest); it is tuned for the usual size.

    Attributes:
        batch: images in a request.
        height: height of the engine's input; None: the graph fixes it.
        width: width of the engine's input; None: the graph fixes it.
    """

    batch: Range = (1, 1, 1)
    height: Range | None = None
    width: Range | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "height", "width"):
            sizes = getattr(self, name)
            if sizes is not None and not (len(sizes) == 3 and 1 <= sizes[0] <= sizes[1] <= sizes[2]):
                raise ExportError(f"profile: {name} must be 1 <= smallest <= usual <= largest; got {sizes}")


@dataclass(frozen=True)
class EngineReport:
    """What was built.

    Attributes:
        backend: `TensorRT` or `TensorRT-RTX`.
        version: the backend's version, such as `10.14.1.48`.
        layers: number of layers of the network, before fusion.
        size: size of the plan file in bytes.
        seconds: time of parsing and building.
    """

    backend: str
    version: str
    layers: int
    size: int
    seconds: float


def build_engine(
    model: onnx.ModelProto,
    plan: Path,
    *,
    profile: Profile,
    timing_cache: Path | None = None,
    workspace: int | None = None,
) -> EngineReport:
    """Build an engine and put it in place; the file appears only when it is complete.

    Args:
        model: graph of standard operators with one input, uint8 [N, H, W, 3] or float32 [N, 3, H, W], in the precision
            of the engine.
        plan: the file to write.
        profile: the input sizes that the engine takes.
        timing_cache: file of measured kernel times, read if it exists and written afterwards: the next build of a
            similar graph on the same GPU is faster.
        workspace: bytes of device memory that a layer may use; None: all there is.

    Raises:
        ExportError: no TensorRT is installed, or TensorRT has no GPU; the graph does not parse (every error is listed
            with its node and operator), needs a plugin or does not fit the profile; or the engine cannot be built or
            written.
    """
    if workspace is not None and workspace <= 0:
        raise ExportError(f"workspace must be a number of bytes above 0; got {workspace}")
    trt, backend = load_tensorrt()
    started = time.monotonic()
    log = error_log(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # how the binding reports a null pointer
        raise ExportError(f"{backend} {trt.__version__} cannot build here: {log.summary() or error}") from error
    network = builder.create_network(_flag(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"))
    _parse(trt, network, log, model)
    config = builder.create_builder_config()
    config.add_optimization_profile(_optimisation_profile(builder, network, profile))
    if "TF32" in trt.BuilderFlag.__members__:  # the graph decides the precision: float32 is float32
        config.clear_flag(trt.BuilderFlag.TF32)
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if timing_cache is not None:
        config.set_timing_cache(config.create_timing_cache(_read_cache(timing_cache)), ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"{backend} {trt.__version__} cannot build the engine: {log.summary()}")
    _write(plan, engine)
    if timing_cache is not None:
        _write(timing_cache, config.get_timing_cache().serialize())
    size, seconds = plan.stat().st_size, time.monotonic() - started
    return EngineReport(backend, version=trt.__version__, layers=network.num_layers, size=size, seconds=seconds)


def check_target(backend: str, version: str, target: str) -> str | None:
    """Return why an engine will not load at its target; None: it will.

    A plan loads only in the TensorRT version that built it, and Triton's `tensorrt_plan` holds TensorRT, not RTX.

    Args:
        backend: the engine's `EngineReport.backend`.
        version: the engine's `EngineReport.version`.
        target: the server's TensorRT version, such as `10.14.1`, or a Triton container, such as `26.07-py3`.

    Raises:
        ExportError: the target is neither a version nor a container.
    """
    if backend != TENSORRT:
        return (
            f"the engine was built by {backend} {version}: Triton's tensorrt_plan backend cannot load it, only the "
            "TensorRT-RTX runtime can. It shows that the graph builds; build the engine to serve with TensorRT, on a "
            "GPU, in the container that will serve it"
        )
    if re.search(r"(^|:)(1[89]|2\d)\.\d\d(-|$)", target):
        image = target if ":" in target else f"nvcr.io/nvidia/tritonserver:{target}"
        return (
            f"the TensorRT version in {image} is not known here, and the engine needs {version}: look it up in "
            f"{SUPPORT_MATRIX} or run `docker run --rm {image} bash -c 'dpkg -l | grep tensorrt'`; give that version"
        )
    if not re.fullmatch(r"\d+(\.\d+){1,3}", target):
        raise ExportError(
            f"target must be a TensorRT version (10.14.1) or a Triton container (26.07-py3); got {target!r}"
        )
    if all(ours == theirs for ours, theirs in zip(version.split("."), target.split("."), strict=False)):
        return None
    return (
        f"the engine was built by TensorRT {version} and the target has {target}: a plan loads in its own version only"
    )


def load_tensorrt() -> tuple[ModuleType, str]:
    """Return the bindings of TensorRT, else of TensorRT-RTX, and the product's name.

    Raises:
        ExportError: neither is installed, or TensorRT is too old.
    """
    for name, backend in _MODULES.items():
        with suppress(ImportError):
            module = importlib.import_module(name)
            if backend == TENSORRT and int(module.__version__.split(".")[0]) < _OLDEST:
                raise ExportError(f"TensorRT {module.__version__} is too old: {_OLDEST} or newer is needed")
            return module, backend
    raise ExportError(
        "no TensorRT is installed: on a machine with a GPU use a container that has it (nvcr.io/nvidia/tensorrt) or "
        "`pip install tensorrt`; `pip install 'm2f[engine]'` builds with TensorRT-RTX on any machine"
    )


def _flag(kind: Any, name: str) -> int:
    """Return a flag as a bit; 0 in versions that have no such flag, where its effect is the default."""
    member = kind.__members__.get(name)
    return 0 if member is None else 1 << int(member)


def _parse(trt: ModuleType, network: Any, log: Any, model: onnx.ModelProto) -> None:
    parser = trt.OnnxParser(network, log)
    parser.flags |= _flag(trt.OnnxParserFlag, "NATIVE_INSTANCENORM")  # else the parser asks for a plugin
    if not parser.parse(_pixels_cast_first(model).SerializeToString()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        lines = [f"  {e.node_operator()} {e.node_name()!r}: {_one_line(e.desc())}" for e in errors]
        raise ExportError("\n".join(["the graph does not parse:", *lines]))
    layers = (network.get_layer(i) for i in range(network.num_layers))
    plugins = sorted({layer.name for layer in layers if "PLUGIN" in layer.type.name})
    if plugins or parser.get_used_vc_plugin_libraries():
        raise ExportError(f"the graph needs plugins: {', '.join(plugins)}; standard operators only are allowed")


def _pixels_cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Move the cast of uint8 pixels to the front: TensorRT takes uint8 only into a cast."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            pixels = f"{value.name}_float32"
            for node in result.graph.node:
                node.input[:] = [pixels if name == value.name else name for name in node.input]
            result.graph.node.insert(0, helper.make_node("Cast", [value.name], [pixels], to=TensorProto.FLOAT))
    result.graph.ClearField("value_info")  # states uint8 for tensors that are floats now
    return result


def _optimisation_profile(builder: Any, network: Any, profile: Profile) -> Any:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    if len(tensors) != 1 or len(tensors[0].shape) != 4:
        found = ", ".join(f"{tensor.name} {tuple(tensor.shape)}" for tensor in tensors)
        raise ExportError(f"the graph must have one input of 4 axes, images; it has {found or 'none'}")
    (tensor,) = tensors
    shape = list(tensor.shape)
    height = 1 if shape[-1] in (1, 3) else 2
    wanted = {0: ("batch", profile.batch), height: ("height", profile.height), height + 1: ("width", profile.width)}
    sizes = []
    for axis, fixed in enumerate(shape):
        name, asked = wanted.get(axis, ("channels", None))
        if fixed == -1 and asked is None:
            raise ExportError(f"profile: the graph leaves the {name} free, so the profile must state it")
        if fixed != -1 and asked not in (None, (fixed,) * 3):
            raise ExportError(f"profile: the graph fixes the {name} at {fixed}; got {asked}")
        sizes.append(asked or (fixed,) * 3)
    made = builder.create_optimization_profile()
    made.set_shape(tensor.name, *zip(*sizes, strict=True))
    return made


def error_log(trt: ModuleType) -> Any:
    """Return a TensorRT logger that keeps errors for the message instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(_one_line(message))

        def summary(self) -> str:
            return "; ".join(dict.fromkeys(self.errors[-3:]))

    return Log()


def _one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line and "catchCudaError" not in line]  # printed without a GPU
    return " ".join(lines)[:400]


def _read_cache(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ExportError(f"timing cache {path} cannot be read: {error}") from error


def _write(path: Path, content: Any) -> None:
    draft = path.with_name(path.name + ".draft")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
