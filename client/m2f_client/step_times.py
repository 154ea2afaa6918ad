"""The time that each step of a model takes, from Triton's statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_COMPUTE = ("compute_input", "compute_infer", "compute_output")  # of Triton's `inference_stats`


class Spent(NamedTuple):
    """What one model has done, over all its versions.

    Attributes:
        requests: requests answered without an error.
        work_ns: nanoseconds of work, summed over the requests.
        wait_ns: nanoseconds in the model's queue.
        total_ns: nanoseconds from a request's arrival to its answer. For an ensemble that includes all its steps.
        images: images in all requests.
        executions: calls of the model. A call may answer a batch of requests.
    """

    requests: int = 0
    work_ns: int = 0
    wait_ns: int = 0
    total_ns: int = 0
    images: int = 0
    executions: int = 0

    def plus(self, other: Spent) -> Spent:
        """Return the sum of both."""
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))

    def since(self, before: Spent) -> Spent:
        """Return what was done after `before`."""
        return Spent(*(b - a for a, b in zip(before, self, strict=True)))


@dataclass(frozen=True)
class StepTime:
    """One step of an ensemble, as a mean over requests.

    Attributes:
        name: name of the step's model.
        work_ms: milliseconds of work for a request.
        wait_ms: milliseconds that a request waited for the step.
        batch: images in a call of the model.
    """

    name: str
    work_ms: float
    wait_ms: float
    batch: float = 1.0


def spent(statistics: Sequence[Mapping[str, Any]]) -> dict[str, Spent]:
    """Return what each model has done since the server started.

    Args:
        statistics: `model_stats` from HTTP, or from gRPC, where numbers are text and zeros are left out.
    """
    sums: dict[str, Spent] = {}
    for entry in statistics:
        kinds = entry.get("inference_stats", {})
        version = Spent(
            requests=_number(kinds, "success", "count"),
            work_ns=sum(_number(kinds, kind, "ns") for kind in _COMPUTE),
            wait_ns=_number(kinds, "queue", "ns"),
            total_ns=_number(kinds, "success", "ns"),
            images=int(entry.get("inference_count", 0)),
            executions=int(entry.get("execution_count", 0)),
        )
        sums[entry["name"]] = sums.get(entry["name"], Spent()).plus(version)
    return sums


def _number(kinds: Mapping[str, Any], kind: str, member: str) -> int:
    return int(kinds.get(kind, {}).get(member, 0))


def steps_between(
    before: Mapping[str, Spent], after: Mapping[str, Spent], names: Sequence[str]
) -> tuple[StepTime, ...]:
    """Return the mean times of each step over the requests between two statistics; idle steps are left out.

    If other clients use the server at the same time, the means include their requests.
    """
    steps = []
    for name in names:
        done = after.get(name, Spent()).since(before.get(name, Spent()))
        if done.requests > 0:
            work, wait = (ns / done.requests / 1e6 for ns in (done.work_ns, done.wait_ns))
            steps.append(StepTime(name, work, wait, done.images / max(1, done.executions)))
    return tuple(steps)
