"""Faults of Triton that a request can use, and the version that mends each: the table of docs/triton-faults.md."""

from __future__ import annotations

from dataclasses import dataclass

from m2f_export.doctor import catalogue
from m2f_export.doctor.findings import Finding, listed


@dataclass(frozen=True)
class Fault:
    """A structure of requests that Triton does not survive.

    Attributes:
        name: the structure, as in the first column of the table in the docs.
        triton: first version of Triton without the fault; None: no version.
        container: the same version as NVIDIA's container.
    """

    name: str
    triton: tuple[int, int, int] | None = None
    container: tuple[int, int] | None = None

    def is_in(self, version: str) -> bool:
        """Return whether a version has the fault; the version is Triton's (`2.51.0`) or its container's (`24.10`)."""
        numbers = tuple(int(part) for part in version.split("."))
        if self.triton is None or self.container is None:
            return True
        return numbers < (self.container if numbers[0] >= 18 else self.triton[: len(numbers)])


FAULTS = (
    Fault("`classification` of a BYTES output", (2, 60, 0), (25, 8)),
    Fault("`classification` of an output without rows over HTTP"),
    Fault("`classification` of a large output", (2, 66, 0), (26, 2)),
    Fault("cancelled gRPC calls", (2, 59, 0), (25, 6)),
    Fault("deep JSON", (2, 69, 0), (26, 5)),
    Fault("deep `data` in JSON", (2, 58, 0), (25, 5)),
    Fault("thousands of parameters over HTTP"),
    Fault("shapes that wrap or are negative", (2, 68, 0), (26, 4)),
    Fault("a step that fails beside another", (2, 69, 0), (26, 5)),
    Fault("outputs asked for twice over HTTP", (2, 69, 0), (26, 5)),
    Fault("bodies in very many chunks", (2, 69, 0), (26, 5)),
    Fault("compressed bodies", (2, 69, 0), (26, 5)),
)


def check_faults(version: str, source: str) -> list[Finding]:
    """Report the faults that a server has: a warning if a newer version mends some, else a note.

    Args:
        version: Triton's version or its container's.
        source: where the version was found.
    """
    had = [fault for fault in FAULTS if fault.is_in(version)]
    if not had:
        return []
    mended = [fault.container for fault in had if fault.container is not None]
    names = listed(fault.name for fault in had)
    if not mended:
        return [catalogue.TRITON_FAULTS_OPEN("tritonserver", version=version, source=source, names=names)]
    newest = ".".join(f"{part:02}" for part in max(mended))
    return [catalogue.TRITON_FAULTS("tritonserver", version=version, source=source, names=names, newest=newest)]
