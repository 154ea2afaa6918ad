"""The server that will run a repository: its version, and what is known of it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from m2f_export.doctor import catalogue
from m2f_export.doctor.findings import Finding
from m2f_export.doctor.triton_faults import check_faults
from m2f_export.export_errors import ExportError

# 26.07 is Triton 2.71.0: README of triton-inference-server/server, "Update default branches post-26.07"
SAFE_CONTAINER, SAFE_VERSION = (26, 7), (2, 71, 0)
# `pip install m2f[server]`: the wheel does not say which Triton it holds; its server answers 2.51.0
WHEELS = {"0.7.0": "2.51.0"}


def check_server(version: str | None = None) -> list[Finding]:
    """Warn of a server older than the safe version, and name the faults that it has.

    Args:
        version: Triton's version (`2.51.0`) or its container's (`24.10`); None: of the server that `m2f serve` would
            run here.

    Raises:
        ExportError: the version is neither of the two.
    """
    found = (version, "the given version") if version is not None else found_server()
    if found is None:
        return []
    old = [] if is_safe(found[0]) else [catalogue.SERVER_TOO_OLD("tritonserver", version=found[0], source=found[1])]
    return [*old, *check_faults(*found)]


def is_safe(version: str) -> bool:
    """Return whether a version of Triton, or of its container, is at least the safe version.

    Raises:
        ExportError: the version is neither of the two; the message says what is allowed.
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", version):
        raise ExportError(f"{version!r} is neither a version of Triton (2.71.0) nor of its container (26.07)")
    numbers = tuple(int(part) for part in version.split("."))
    return numbers >= (SAFE_CONTAINER if numbers[0] >= 18 else SAFE_VERSION[: len(numbers)])


def found_server() -> tuple[str, str] | None:
    """Return the version of the server that `m2f serve` would run here, and its source; None: not known."""
    if binary := shutil.which("tritonserver"):
        stated = os.environ.get("TRITON_SERVER_VERSION", "")  # NVIDIA's container sets it
        if not stated:
            with suppress(OSError, UnicodeDecodeError):
                stated = (Path(binary).resolve().parent.parent / "TRITON_VERSION").read_text()
        version = re.match(r"\d+\.\d+(\.\d+)?", stated.strip())  # a build of one's own may say 2.52.0dev
        return (version[0], str(binary)) if version else None
    try:
        wheel = importlib.metadata.version("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        return None
    return (WHEELS[wheel], f"inside nvidia-pytriton {wheel}") if wheel in WHEELS else None
