"""What a figure is worth nothing without."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("m2f", "numpy", "torch", "mmdet", "transformers", "opencv-python-headless", "pycocotools", "onnxruntime")
_VECTOR_FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "asimd")


def describe() -> dict[str, str]:
    """Return hardware, instruction sets, load and versions."""
    facts = _cpuinfo()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return {
        "cpu": facts.get("model name") or platform.machine(),
        "cores": str(os.cpu_count()),
        "instruction sets": " ".join(flag for flag in _VECTOR_FLAGS if flag in flags),
        "cache": facts.get("cache size", "unknown"),
        "load at the start": f"{os.getloadavg()[0]:.2f}",
        "threads": "1",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _cpuinfo() -> dict[str, str]:
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
