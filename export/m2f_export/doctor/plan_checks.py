"""A TensorRT plan: which product and version built it, read from the header alone.

TensorRT starts a plan with the tag `ftrt`. With serialization version 0 in the next four bytes, bytes 24 to 27 are the
version of TensorRT that built the plan (`trtexec --getPlanVersionOnly`:
https://github.com/NVIDIA/TensorRT/blob/main/samples/common/sampleEngines.cpp). TensorRT-RTX starts a plan with `vtrt`
and the same layout; bytes 16 to 23 are the length of the file (seen in plans of TensorRT-RTX 1.7.1.116). The rest of a
plan is undocumented and not read.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from m2f_export.doctor import catalogue
from m2f_export.doctor.file_checks import check_content
from m2f_export.doctor.findings import Finding
from m2f_export.export_errors import ExportError
from m2f_export.onnx_files import load_onnx

TENSORRT_TAG, RTX_TAG = b"ftrt", b"vtrt"
HEADER_BYTES = 28


def check_plan(path: Path, *, tensorrt_version: str | None = None) -> list[Finding]:
    """Check a `.plan` or `.engine` file against the TensorRT that will load it.

    Args:
        path: the plan.
        tensorrt_version: the server's TensorRT, `X.Y` or longer; None: the installed `tensorrt`, if there is one.
    """
    return check_content(path) or [*_check_header(path, tensorrt_version)]


def _check_header(path: Path, tensorrt_version: str | None) -> Iterator[Finding]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    tag = head[:4]
    if tag not in (TENSORRT_TAG, RTX_TAG):
        yield catalogue.PLAN_IS_ONNX(path) if _is_onnx(path) else catalogue.PLAN_UNREADABLE(path, tag=tag)
        return
    wanted = _length(head) if tag == RTX_TAG and _is_known(head) else HEADER_BYTES
    if size < wanted:
        yield catalogue.PLAN_TRUNCATED(path, size=size, wanted=wanted)
    elif tag == RTX_TAG:
        built = f"TensorRT-RTX {_version(head)}" if _is_known(head) else "TensorRT-RTX"
        yield catalogue.TENSORRT_RTX_PLAN(path, built=built)
    elif not _is_known(head):
        yield catalogue.PLAN_VERSION_UNKNOWN(path, path=path)
    else:
        yield from _check_version(path, _version(head), tensorrt_version or _installed_tensorrt())


def _check_version(path: Path, built: str, wanted: str | None) -> Iterator[Finding]:
    if wanted is None:
        yield catalogue.SERVER_TENSORRT_UNKNOWN(path, built=built)
    elif built.split(".")[: len(asked := wanted.split("."))] != asked:
        yield catalogue.TENSORRT_VERSION(path, built=built, wanted=wanted)


def _is_onnx(path: Path) -> bool:
    try:
        return bool(load_onnx(path, weights=False))
    except ExportError:
        return False


def _is_known(head: bytes) -> bool:
    """Return whether the header is complete and has the serialization version that is known."""
    return len(head) == HEADER_BYTES and int.from_bytes(head[4:8], "little") == 0


def _length(head: bytes) -> int:
    return int.from_bytes(head[16:24], "little")


def _version(head: bytes) -> str:
    return ".".join(str(part) for part in head[24:28])


def _installed_tensorrt() -> str | None:
    try:
        return importlib.metadata.version("tensorrt")
    except importlib.metadata.PackageNotFoundError:
        return None
