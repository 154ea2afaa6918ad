"""A benchmark for people, and as JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m2f_client.bench.advice import ONE_IMAGE, Advice, size
from m2f_client.bench.figures import Images, Measured
from m2f_client.printable import printable

_WIDTH = 120  # columns that a table may take


def as_json(measured: Measured, advice: tuple[Advice, ...]) -> str:
    """Return all figures and what to turn as a JSON object."""
    return json.dumps({"m2f": version("m2f"), **asdict(measured), "advice": [asdict(one) for one in advice]})


def show(measured: Measured, advice: tuple[Advice, ...], console: Console) -> None:
    """Print all figures and what to turn."""
    _say(console, f"{measured.model} at {measured.url}, {_images(measured.images)}")
    _say(console, f"outputs {', '.join(measured.outputs)}")
    for step in measured.steps:
        if step.role == "engine":
            batch = f"batches up to {step.max_batch}" if step.batches else "no batches"
            parameters = ", ".join(f"{name}={value}" for name, value in sorted(step.parameters.items()))
            _say(console, f"engine {step.name}: {step.runs_on}, {step.instances} x, {batch}; {parameters}".rstrip("; "))
    _print(console, _levels(measured))
    if not all(level.complete for level in measured.levels):
        _say(console, "* cut short\n")
    console.print(Text("where the time goes, ms an image", style="bold"))
    _print(console, _times(measured))
    if measured.blind:
        _say(console, f"no times by step: {measured.blind}\n")
    console.print(Text("what to turn", style="bold"))
    lines = Table.grid(padding=(0, 1))
    for number, one in enumerate(advice, 1):
        lines.add_row(f"{number}.", Text(printable(one.turn)))
        lines.add_row("", Text(printable(f"because {one.because}"), style="dim"))
    console.print(lines)
    if not advice:
        _say(console, "nothing: no figure stands out")


def _images(images: Images) -> str:
    some = f" of {images.found}" if images.found > images.count else ""
    count = f"{images.count}{some} image{'' if images.count == 1 else 's'}"
    sides = f", median {images.width}x{images.height}" if images.width is not None else ""
    found = f", {images.instances:.1f} instances in each" if images.instances is not None else ""
    return f"{count}{sides}, {size(images.bytes)} and {images.read_ms:.1f} ms to read each{found}"


def _levels(measured: Measured) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("in flight", "images/s", "p50 ms", "p99 ms", "sent", "received", "images", "failed"):
        table.add_column(column, justify="right", no_wrap=True)
    for level in measured.levels:
        table.add_row(
            f"{level.in_flight}{'' if level.complete else ' *'}",
            f"{level.images_per_second:.1f}",
            f"{level.p50_ms:.1f}",
            f"{level.p99_ms:.1f}",
            size(level.bytes_sent),
            size(level.bytes_received),
            str(level.images),
            str(sum(level.failed.values())),
        )
    return table


def _times(measured: Measured) -> Table:
    """Return a table with a column for each number of requests in flight."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("in flight", no_wrap=True)
    for level in measured.levels:
        table.add_column(str(level.in_flight), justify="right", no_wrap=True)
    levels = measured.levels
    _row(table, "client", [level.client_ms for level in levels])
    _row(table, "network, front end", [level.network_ms for level in levels])
    _row(table, "network, server", [level.trip_ms if level.server_ms is None else None for level in levels])
    for step in measured.steps:
        name = step.name.removeprefix(f"{measured.model}_")
        times = [next((time for time in level.steps if time.name == step.name), None) for level in levels]
        _row(table, f"{name} waits", [None if time is None else time.wait_ms for time in times])
        _row(table, f"{name} works", [None if time is None else time.work_ms for time in times])
        batches = [None if time is None else time.batch for time in times]
        if max(filter(None, batches), default=1.0) > ONE_IMAGE:
            _row(table, f"{name}, images a batch", batches)
    return table


def _row(table: Table, name: str, numbers: Sequence[float | None]) -> None:
    """Add a row, unless no level has a number for it."""
    if any(number is not None for number in numbers):
        table.add_row(Text(printable(name)), *("-" if number is None else f"{number:.1f}" for number in numbers))


def _print(console: Console, table: Table) -> None:
    """Print a table whole. In a pipe or a narrow terminal rich would cut its figures."""
    width, console.width = console.width, max(_WIDTH, console.width)
    console.print(table)
    console.width = width


def _say(console: Console, line: str) -> None:
    console.print(Text(printable(line)), soft_wrap=True)
