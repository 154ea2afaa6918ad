"""Choose the configuration of a repository's engines: TensorRT, a GPU through ONNX Runtime, or the processor."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

TENSORRT, GPU, CPU = "tensorrt", "gpu", "cpu"
_NEEDS_TENSORRT = re.compile(r'^platform: "tensorrt_plan"', re.MULTILINE)
_STEP = re.compile(r"""\bmodel_name\s*:\s*["']([^"']+)""")
_BACKENDS = "--backend-directory="
_BACKEND = Path("tensorrt", "libtriton_tensorrt.so")


@dataclass(frozen=True)
class Choice:
    """The configuration that a server uses.

    Attributes:
        name: `configs/<name>.pbtxt` of each model that has it; None is `config.pbtxt`, TensorRT.
        why: the reason of a choice, for people; None if the configuration was given.
    """

    name: str | None
    why: str | None = None

    @property
    def label(self) -> str:
        """The name that `--config-name` takes."""
        return self.name or TENSORRT


def choose(asked: str | None, repository: Path, *, load: Sequence[str] = (), extra_args: Sequence[str] = ()) -> Choice:
    """Return the configuration that was asked for, else the fastest that this machine can run.

    That is TensorRT if Triton has its backend, every engine has a plan and there is a GPU; else `gpu` if there is a GPU
    and ONNX Runtime can use it; else `cpu`.

    Args:
        asked: `--config-name`; None: choose.
        repository: the folder of models.
        load: names of the models that will be loaded; the engines of other models have no say. Empty for all models.
        extra_args: the options for `tritonserver`, which may name the folder of its backends.
    """
    if asked is not None:
        return Choice(None if asked == TENSORRT else asked)
    engines = _engines(repository, load)
    if not engines:
        return Choice(None, "no model needs TensorRT")
    no_gpu = gpu_trouble()
    no_tensorrt = no_gpu or _tensorrt_trouble(engines, extra_args)
    if no_tensorrt is None:
        return Choice(None, "there is a GPU, Triton's TensorRT backend, and a model.plan for every engine")
    no_onnx_runtime = no_gpu or _onnx_runtime_trouble(engines)
    if no_onnx_runtime is None:
        return Choice(GPU, f"there is a GPU; not TensorRT: {no_tensorrt}")
    reasons = dict.fromkeys((no_tensorrt, no_onnx_runtime))
    return Choice(CPU if _all_have(engines, CPU) else None, "; ".join(reasons))


def gpu_trouble() -> str | None:
    """Return why there is no NVIDIA GPU for this process; None: there is one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no GPU: NVIDIA's driver is not installed"
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"no GPU: NVIDIA's driver reports error {code}"
    return None if count.value else "no GPU: NVIDIA's driver shows none"


def _engines(repository: Path, load: Sequence[str]) -> list[Path]:
    """Return the folders of the models to load that are TensorRT engines in `config.pbtxt`.

    An engine of other origin, without another configuration, has no say if there are engines with one.
    """
    texts = {path.parent: path.read_text(errors="replace") for path in sorted(repository.glob("*/config.pbtxt"))}
    loaded = list(load)
    for name in loaded:  # which grows by the steps of its ensembles
        loaded += [step for step in _STEP.findall(texts.get(repository / name, "")) if step not in loaded]
    engines = [
        model for model, text in texts.items() if _NEEDS_TENSORRT.search(text) and (not load or model.name in loaded)
    ]
    return [engine for engine in engines if any(engine.glob("configs/*.pbtxt"))] or engines


def _all_have(engines: Sequence[Path], name: str) -> bool:
    return all((engine / "configs" / f"{name}.pbtxt").is_file() for engine in engines)


def _tensorrt_trouble(engines: Sequence[Path], extra_args: Sequence[str]) -> str | None:
    if not any((folder / _BACKEND).is_file() for folder in _backend_folders(extra_args)):
        return "this Triton has no TensorRT backend"
    without = [engine.name for engine in engines if not any(engine.glob("[0-9]*/model.plan"))]
    return f"no model.plan in {', '.join(without)} (m2f engine builds one)" if without else None


def _onnx_runtime_trouble(engines: Sequence[Path]) -> str | None:
    if not _all_have(engines, GPU):
        return "an engine has no configs/gpu.pbtxt: export it again"
    spec = find_spec("onnxruntime")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / "capi" / "libonnxruntime_providers_cuda.so").is_file():
        return "ONNX Runtime has no CUDA here: pip install 'm2f[gpu]'"
    return None


def _backend_folders(extra_args: Sequence[str]) -> list[Path]:
    """Return where `tritonserver` looks for backends; the server of the wheel `nvidia-pytriton` has no TensorRT."""
    stated = [Path(text.removeprefix(_BACKENDS)) for text in extra_args if text.startswith(_BACKENDS)]
    binary = shutil.which("tritonserver")
    beside = [Path(binary).resolve().parents[1] / "backends"] if binary else []
    return stated or [*beside, Path("/opt/tritonserver/backends")]
