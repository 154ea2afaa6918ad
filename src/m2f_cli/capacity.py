"""`m2f capacity`: replicas, GPUs, cores, memory and network for a number of images a second."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import click


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What an image costs.

    Attributes:
        about: model and machine, for people.
        gpu_ms: time of the GPU; 0 without a GPU.
        cpu_ms: processor time of the server. With a GPU: outside the engine.
        image_kb: kilobytes of an encoded image.
        answer_kb: kilobytes of an answer.
        memory_gb: gigabytes of main memory of a replica.
    """

    about: str
    gpu_ms: float
    cpu_ms: float
    image_kb: float
    answer_kb: float
    memory_gb: float


# measured: docs/capacity.md has the source of each figure
WORKLOADS = {
    "r50-gpu": Workload(
        about="R50 in fp16, 800 x 1333, 100 queries, H200",
        gpu_ms=24.2, cpu_ms=21.1, image_kb=119, answer_kb=5.7, memory_gb=1.0,
    ),
    "small-gpu": Workload(
        about="embedded model, 256 x 256, H200", gpu_ms=1.9, cpu_ms=4.1, image_kb=28, answer_kb=2.4, memory_gb=0.5
    ),
    "r50-cpu": Workload(
        about="R50, 512 x 512, OpenVINO", gpu_ms=0, cpu_ms=1315, image_kb=17, answer_kb=0.7, memory_gb=1.3
    ),
    "small-cpu": Workload(
        about="embedded model, 256 x 256, OpenVINO", gpu_ms=0, cpu_ms=22.4, image_kb=28, answer_kb=2.4, memory_gb=0.5
    ),
}  # fmt: skip
CPU_CORES = 4  # of a replica without a GPU


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a rate needs.

    Attributes:
        images_s: the rate.
        replica_images_s: images a second of a replica that is busy for the wanted share of the time.
        replica_most_images_s: images a second of a replica that is always busy.
        limit: what a replica runs out of first, `GPU` or `cores`.
        replicas: number of replicas, spare ones included.
        gpus: number of GPUs, one for each replica; 0 without.
        replica_cores: cores of a replica.
        cores: cores of all replicas.
        memory_gb: gigabytes of main memory of all replicas.
        in_mbit_s: megabits of images a second.
        out_mbit_s: megabits of answers a second.
    """

    images_s: float
    replica_images_s: float
    replica_most_images_s: float
    limit: str
    replicas: int
    gpus: int
    replica_cores: int
    cores: int
    memory_gb: float
    in_mbit_s: float
    out_mbit_s: float


def plan(images_s: float, work: Workload, *, busy: float = 0.7, spare: int = 1, cores: int | None = None) -> Plan:
    """Return what a rate needs.

    Args:
        images_s: images a second at the busiest time.
        work: what an image costs.
        busy: share of the time in which a replica works at that rate.
        spare: replicas beyond those that the rate needs: for one that is updated or has failed.
        cores: cores of a replica; None: as many as its GPU keeps busy for the same share, or `CPU_CORES` without a GPU.
    """
    gpu_s = 1e3 / work.gpu_ms if work.gpu_ms else math.inf
    if cores is None:
        cores = math.ceil(gpu_s * work.cpu_ms / 1e3 / busy) if work.gpu_ms else CPU_CORES
    cores_s = cores * 1e3 / work.cpu_ms
    most = min(gpu_s, cores_s)
    replicas = math.ceil(images_s / (busy * most)) + spare
    return Plan(
        images_s=images_s,
        replica_images_s=busy * most,
        replica_most_images_s=most,
        limit="GPU" if gpu_s <= cores_s else "cores",
        replicas=replicas,
        gpus=replicas if work.gpu_ms else 0,
        replica_cores=cores,
        cores=replicas * cores,
        memory_gb=replicas * work.memory_gb,
        in_mbit_s=images_s * work.image_kb * 8 / 1e3,
        out_mbit_s=images_s * work.answer_kb * 8 / 1e3,
    )


def shown(figure: float) -> str:
    """Return a figure as people read it: three digits, thousands apart."""
    return f"{figure:,.0f}" if figure >= 99.95 else f"{figure:.3g}"


def lines(found: Plan, work: Workload, *, busy: float, spare: int) -> list[str]:
    """Return a plan as people read it."""
    gpus = f"{found.gpus}, one for each replica" if found.gpus else "none"
    return [
        f"{shown(found.images_s)} images/s of {work.about}",
        f"  a replica  {shown(found.replica_images_s)} images/s, busy {busy:.0%} of the time; "
        f"{shown(found.replica_most_images_s)} at most, then it runs out of {found.limit}",
        f"  replicas   {found.replicas:,}, {spare} of them spare",
        f"  GPUs       {gpus}",
        f"  cores      {found.cores:,}, {found.replica_cores} for each replica",
        f"  memory     {shown(found.memory_gb)} GB, {work.memory_gb:g} for each replica",
        f"  network    {shown(found.in_mbit_s)} Mbit/s of images, {shown(found.out_mbit_s)} Mbit/s of answers",
    ]


class Number(click.FloatRange):
    """A number in a range; NaN is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is no number from {self.min:g} to {self.max:g}", param, ctx)
        return number


def _cost(option: str, help_: str, *, least: float = 0.001) -> Any:
    return click.option(option, type=Number(least, 1e9), metavar="N", help=f"{help_} Default: the workload's.")


@click.command()
@click.argument("images_s", metavar="IMAGES_PER_SECOND", type=Number(0.001, 1e9))
@click.option("--workload", type=click.Choice(list(WORKLOADS)), default="r50-gpu", show_default=True,
              help="Whose measured costs to begin with: " +
              "; ".join(f"{name}: {work.about}" for name, work in WORKLOADS.items()) + ".")  # fmt: skip
@_cost("--gpu-ms", "GPU milliseconds of an image; 0: no GPU.", least=0)
@_cost("--cpu-ms", "Processor milliseconds of an image, in all processes of the server.")
@_cost("--image-kb", "Kilobytes of an encoded image.")
@_cost("--answer-kb", "Kilobytes of an answer.")
@_cost("--memory-gb", "Gigabytes of main memory of a replica.")
@click.option("--cores", type=click.IntRange(1, 10_000), metavar="N",
              help=f"Cores of a replica. Default: as many as its GPU needs; {CPU_CORES} without a GPU.")  # fmt: skip
@click.option("--busy", type=Number(0.05, 1), default=0.7, metavar="SHARE", show_default=True,
              help="Share of the time in which a replica works at this rate. Above 0.8 requests wait.")  # fmt: skip
@click.option("--spare", type=click.IntRange(0, 10_000), default=1, metavar="N", show_default=True,
              help="Replicas beyond those that the rate needs.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def capacity(
    *, images_s: float, workload: str, cores: int | None, busy: float, spare: int, as_json: bool, **costs: float | None
) -> None:
    """Compute what a number of images a second needs.

    That is replicas, GPUs, cores, memory and network. The costs of an image are those of a measured workload, or your
    own. docs/capacity.md says how to find yours. Nothing is measured, and no server is asked.
    """
    work, gpu_ms = WORKLOADS[workload], costs["gpu_ms"]
    if gpu_ms is not None and (gpu_ms > 0) != (work.gpu_ms > 0) and costs["cpu_ms"] is None:
        measured = "with" if work.gpu_ms else "without"
        raise click.BadParameter(
            f"{workload} was measured {measured} a GPU, so its --cpu-ms does not fit: give --cpu-ms too",
            param_hint="--gpu-ms",
        )
    own: dict[str, Any] = {name: value for name, value in costs.items() if value is not None}
    if own:
        work = replace(work, about=f"{workload} with your costs", **own)
    found = plan(images_s, work, busy=busy, spare=spare, cores=cores)
    if as_json:
        click.echo(json.dumps({"workload": asdict(work), **asdict(found)}))
    else:
        click.echo("\n".join(lines(found, work, busy=busy, spare=spare)))
