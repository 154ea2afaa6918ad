"""A TensorRT plan: whose it is and which version built it, read from its header alone.

TensorRT starts a plan with the tag `ftrt`; with serialization version 0 in the next four bytes, bytes 24 to 27 are the
version of TensorRT that built it (`trtexec --getPlanVersionOnly`:
https://github.com/NVIDIA/TensorRT/blob/main/samples/common/sampleEngines.cpp). TensorRT-RTX starts a plan with `vtrt`
and goes on alike; its bytes 16 to 23 are the length of the file (seen in plans that TensorRT-RTX 1.7.1.116 built).
What else a plan holds is not documented, so nothing is said about it.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto

from m2f_export.doctor.findings import Finding, check_content, error, note

TENSORRT_TAG, RTX_TAG = b"ftrt", b"vtrt"
HEADER_BYTES = 28
BUILD = "trtexec --onnx=model.onnx --saveEngine=model.plan, in the container that will serve it"


def check_plan(path: Path, *, tensorrt_version: str | None = None) -> list[Finding]:
    """Check a `.plan` or `.engine` file against the TensorRT that will load it.

    Args:
        path: the plan.
        tensorrt_version: `X.Y` or longer, of the server; None: the installed `tensorrt`, if there is one.
    """
    if found := check_content(path):
        return found
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    tag = head[:4]
    if tag not in (TENSORRT_TAG, RTX_TAG):
        return [_not_a_plan(path, tag)]
    wanted = _length(head) if tag == RTX_TAG and _is_known(head) else HEADER_BYTES
    if size < wanted:
        what = f"the plan breaks off: {size} bytes, at least {wanted} expected"
        why = "a copy broke off; TensorRT refuses what is left"
        return [error("plan-truncated", path, what, why=why, fix=f"copy it again, or build it again: {BUILD}")]
    if tag == RTX_TAG:
        built = f"TensorRT-RTX {_version(head)}" if _is_known(head) else "TensorRT-RTX"
        why = "Triton's TensorRT backend loads plans of TensorRT only; the two formats do not mix"
        what, fix = f"built by {built}, not by TensorRT", f"build it with TensorRT: {BUILD}"
        return [error("tensorrt-rtx-plan", path, what, why=why, fix=fix)]
    return _check_version(path, head, tensorrt_version)


def _check_version(path: Path, head: bytes, wanted: str | None) -> list[Finding]:
    if not _is_known(head):
        what = "a TensorRT plan of a serialization version that is not known here"
        why = "so the TensorRT version that built it cannot be read from its header"
        return [note("plan-version-unknown", path, what, why=why, fix=f"trtexec --loadEngine={path} says more")]
    built = _version(head)
    wanted = wanted or _installed_tensorrt()
    if wanted is None:
        what = f"built by TensorRT {built}; the version of the server is not known here"
        why = "TensorRT loads only the plans of its own version, unless they were built version-compatible"
        return [note("tensorrt-version", path, what, why=why, fix="m2f doctor --tensorrt-version X.Y says if it fits")]
    asked = wanted.split(".")
    if built.split(".")[: len(asked)] == asked:
        return []
    return [
        error(
            "tensorrt-version", path, f"built by TensorRT {built}, the server has {wanted}",
            why="TensorRT loads only the plans of its own version, unless they were built version-compatible",
            fix=f"build it again with TensorRT {wanted}: {BUILD}",
        )
    ]  # fmt: skip


def _not_a_plan(path: Path, tag: bytes) -> Finding:
    if is_onnx(path):
        what, fix = "an ONNX model under the name of a plan", f"build the plan from it: {BUILD}"
        return error("plan-is-onnx", path, what, why="Triton hands the file to TensorRT, which refuses it", fix=fix)
    what = f"not a TensorRT plan: it starts with {tag!r}, a plan with {TENSORRT_TAG!r}"
    why = "TensorRT refuses it (`Magic tag does not match`)"
    return error("plan-unreadable", path, what, why=why, fix=f"build it again: {BUILD}")


def is_onnx(path: Path) -> bool:
    """Return whether a file parses as an ONNX model with a graph in it."""
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        return False
    return len(model.graph.node) > 0


def _is_known(head: bytes) -> bool:
    """Return whether the header is complete and its serialization version the known one."""
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
