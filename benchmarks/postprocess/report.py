"""Tables for people, CSV for whoever computes on, pictures for the documentation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from . import compare, growth, memory, served
from .targets import Target

mpl.use("Agg")


def write_csv(rows: Sequence[Any], path: Path) -> None:
    """Write dataclass rows, or a mapping's items, with a header."""
    records = [asdict(row) for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _short(value) for name, value in record.items()} for record in records)


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def cases_table(rows: Sequence[compare.Row]) -> str:
    """Format the comparison."""
    lines = [f"{'':<24}{'median ms':>11}{'cold ms':>10}{'mmdet /':>9}{'/ floor':>9}{'pixels off':>12}"]
    for i, row in enumerate(rows):
        if not i or rows[i - 1].case != row.case:
            ratio = row.dense_bytes / row.response_bytes
            lines.append(
                f"{row.case}: {row.instances} instances of {row.masks} masks, {row.mean_area:,} pixels each; "
                f"response {row.response_bytes:,} bytes, dense masks {ratio:.0f} times that"
            )
        against = f"{row.ratio:.1f}" if row.ratio else ""
        pixels = "" if row.way == compare.FLOOR else "other" if row.pixels is None else str(row.pixels)
        times = f"{row.median_ms:>11.2f}{row.cold_ms:>10.2f}{against:>9}{row.over_floor:>9.2f}"
        lines.append(f"  {row.way:<22}{times}{pixels:>12}")
    return "\n".join(lines)


def memory_table(rows: Sequence[memory.Row]) -> str:
    """Format the peaks."""
    lines = [f"{'peak extra memory at 800x1333':<32}{'instances':>10}{'MB':>10}{'masks':>9}"]
    lines += [f"  {row.way:<30}{row.instances:>10}{row.peak_bytes / 1e6:>10.2f}{row.masks:>9.2f}" for row in rows]
    return "\n".join(lines)


def served_table(rows: Sequence[served.Row]) -> str:
    """Format where a request's time goes."""
    names = ("round_trip", "outside", "queue", "compute_input", "compute_infer", "compute_output", "bare")
    lines = [f"{'inside Triton, ms':<42}" + "".join(f"{name.removeprefix('compute_'):>11}" for name in names)]
    for i, row in enumerate(rows):
        if not i or rows[i - 1].case != row.case:
            lines.append(row.case)
        times = "".join(f"{getattr(row, f'{name}_ms'):>11.2f}" for name in names)
        lines.append(f"  {row.model + ', ' + row.transport:<40}{times}")
    return "\n".join(lines)


def targets_table(rows: Sequence[Target]) -> str:
    """Format the targets."""
    words = {True: "pass", False: "FAIL", None: "not here"}
    width = max(len(row.name) for row in rows) + 4
    lines = [f"{'target':<{width}}{'bound':>9}{'measured':>11}"]
    for row in rows:
        measured = "" if row.measured is None else f"{row.measured:.4g}"
        lines.append(f"  {row.name:<{width - 2}}{row.bound:>9}{measured:>11}  {words[row.passed]}")
    return "\n".join(lines)


def draw_ways(rows: Sequence[compare.Row], path: Path) -> None:
    """Draw the time of every way at every output size, 15 objects."""
    chosen = [row for row in rows if row.case == f"15 objects, {row.output}"]
    outputs = list(dict.fromkeys(row.output for row in chosen))
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for way in dict.fromkeys(row.way for row in chosen):
        times = {row.output: row.median_ms for row in chosen if row.way == way}
        if len(times) < len(outputs):
            continue  # a line needs them all
        style = "k--" if way == compare.FLOOR else "o-"
        axes.plot(outputs, list(times.values()), style, label=way)
    axes.set(yscale="log", ylabel="ms, one thread", xlabel="output, height x width", title="Logits to RLE, 15 objects")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=110)
    plt.close(figure)


PANELS = {
    "instances": ("instances",),
    "pixels of all masks, 15 objects": ("mask area",),
    "output pixels": ("output, objects grow with it", "output, objects stay"),
    "queries, 15 objects": ("queries",),
}


def draw_growth(rows: Sequence[growth.Row], path: Path) -> None:
    """Draw a panel for each thing that grows."""
    figure, grid = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.6), layout="constrained")
    kernels = list(dict.fromkeys(row.kernel for row in rows))
    for axes, (title, panels) in zip(grid, PANELS.items(), strict=True):
        for kernel in kernels:
            for panel, line in zip(panels, ("-", ":"), strict=False):
                points = sorted((r.x, r.median_ms) for r in rows if (r.panel, r.kernel) == (panel, kernel))
                more = panel.partition(", ")[2]
                label = f"{kernel}, {more}" if more else kernel
                axes.plot(*zip(*points, strict=True), line, marker="o", label=label, color=f"C{kernels.index(kernel)}")
        axes.set(xlabel=title, ylim=(0, None), xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    grid[0].set_ylabel("ms, one thread")
    figure.savefig(path, dpi=110)
    plt.close(figure)
