"""Hardware and versions, without which a figure means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "m2f", "nvidia-pytriton", "onnxruntime", "openvino", "numpy", "opencv-python-headless", "simplejpeg", "pillow",
    "pycocotools", "torch", "mmdet", "mmcv-lite", "transformers",
)  # fmt: skip
_VECTOR_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
    "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd",
)  # fmt: skip
_CHANGING = {"load at the start", "commit", "date"}


def describe() -> dict[str, str]:
    """Return hardware, instruction sets, load, commit and versions."""
    facts = _cpuinfo()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return {
        "cpu": facts.get("model name") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "instruction sets": " ".join(flag for flag in _VECTOR_FLAGS if flag in flags),
        "cache": facts.get("cache size", "unknown"),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "load at the start": f"{os.getloadavg()[0]:.2f}",
        "system": platform.platform(),
        "commit": _commit(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names of the facts that differ, but for those that change from run to run."""
    names = dict.fromkeys([*one, *other])
    return [name for name in names if name not in _CHANGING and one.get(name) != other.get(name)]


def _cpuinfo() -> dict[str, str]:
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _commit() -> str:
    """Return the commit, with `-dirty` if files differ from it; the results, which a run writes, are none of them."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
    return "unknown" if commit is None else commit + ("-dirty" if changed else "")


def _git(*arguments: str) -> str | None:
    """Return what git says; None in an archive of the sources, or without git."""
    try:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
