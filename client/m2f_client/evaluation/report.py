"""The report of `m2f eval`: tables on the screen, files in a folder, precision-recall curves as a picture."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m2f.errors import M2FError
from m2f_client.evaluation.collect import Document
from m2f_client.evaluation.evaluate import Evaluated
from m2f_client.evaluation.files import listed
from m2f_client.evaluation.panoptic import EvaluatedPanoptic
from m2f_client.evaluation.precision import Precision
from m2f_client.printable import complain, printable

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
"""Figures of COCO's summary that the table shows; the JSON has all."""

COMPARED = ("AP", "AP50", "AP75", "AR100")

_CAPTION = 40  # longest class name in a legend
_LEGEND = 12  # up to this many classes, each curve has a colour and a legend


def write(out: Path, evaluated: Evaluated | EvaluatedPanoptic) -> None:
    """Write metrics.json and, for instances, results.json (COCO) and precision_recall.png to a folder.

    Raises:
        M2FError: a file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").write_text(_as_json(evaluated.document) + "\n", encoding="utf-8")
        if isinstance(evaluated, Evaluated):
            rows = [row for image_id in evaluated.rows for row in evaluated.rows[image_id]]
            (out / "results.json").write_text(json.dumps(rows), encoding="utf-8")
            draw_curves(evaluated.masks, out / "precision_recall.png")
    except OSError as error:
        raise M2FError(f"cannot write to {out}: {error.strerror or error}") from error


def show(document: Document, *, as_json: bool) -> bool:
    """Print a report and, on standard error, the images that failed; return whether all worked."""
    failed = [_complain(part) for part in (document, document.get("against")) if part is not None]
    if as_json:
        click.echo(_as_json(document))
    else:
        console = Console()
        for part in summary(document):
            console.print(Text(printable(part)) if isinstance(part, str) else part, soft_wrap=True)
    return not any(failed)


def _as_json(document: Document) -> str:
    return json.dumps(document, indent=1)


def _complain(part: Document) -> bool:
    """Print a server's warnings and failures to standard error; return whether an image failed."""
    origin, failures = _origin(part), part["failures"]
    for message in part["warnings"]:
        complain(f"{origin}: {message}")
    for failure in failures:
        complain(f"{failure['file_name']}: {failure['reason']}")
    if failures:
        complain(f"{origin}: images that failed and are left out of all figures: {len(failures)}")
    return bool(failures)


def _origin(part: Mapping[str, Any]) -> str:
    """Return where the figures of a report, or of its comparison, come from: a server's model, or a file."""
    name: str = part.get("server") or part["name"]
    return f"{part['model']} at {name}" if "model" in part else name


def summary(document: Document) -> list[str | Table]:
    """Return the lines and tables of a report, from top to bottom."""
    found_in = f"{document['images']} images, {document['objects']} objects"
    about = f"{document['dataset']}: {found_in}, by {_origin(document)}"
    settings = {**document["parameters"], **document.get("tiling", {})}
    if sent := ", ".join(f"{name}={value}" for name, value in settings.items()):
        about += f" with {sent}"
    if "tiling" in document:
        about += "; all instances of an image count, not only the best 100"
    if "panoptic" in document:
        panoptic = document["panoptic"]
        rows = {name: panoptic[name] for name in ("all", "things", "stuff")}
        columns, classes, compare = tuple(panoptic["all"]), panoptic["per_class"], _panoptic_comparison
    else:
        rows = {"masks": document["segm"], "boxes": document["bbox"]}
        columns, classes, compare = SHOWN, document["segm"]["per_class"], _comparison
    comparison = compare(document["against"]) if "against" in document else []
    return [about, _figures_table(rows, columns), _classes_table(classes), *comparison]


def _comparison(other: Mapping[str, Any]) -> list[str | Table]:
    lines = [
        f"against {_origin(other)}, {other['images']} images: {other['matched']} of {other['instances']} instances "
        f"have a partner; {other['extra']} instances of the other answer have none"
    ]
    if other["iou"] is not None:
        lines.append(
            f"mean mask IoU {other['iou']:.4f}; scores differ by {other['score_max']:.1e} at most, "
            f"{other['score_mean']:.1e} on average"
        )
    if other["differ"]:
        lines.append(f"images with an instance without a partner: {listed(other['differ'])}")
    return [*lines, _differences_table("masks, this server", other, COMPARED)]


def _panoptic_comparison(other: Mapping[str, Any]) -> list[str | Table]:
    lines = [f"against {_origin(other)}, {other['images']} images"]
    if other["differ"]:
        lines.append(f"images with other numbers of found, false or missed segments: {listed(other['differ'])}")
    return [*lines, _differences_table("this server", other, list(other["before"]))]


def _differences_table(title: str, other: Mapping[str, Any], names: Sequence[str]) -> Table:
    table = _figures_table({title: other["before"], "other": other["after"]}, names)
    changes = [other["difference"][name] for name in names]
    table.add_row("difference", *("-" if change is None else f"{change:+.4f}" for change in changes))
    return table


def _figures_table(rows: Mapping[str, Mapping[str, float | None]], names: Sequence[str]) -> Table:
    return _table(["", *names], [[title, *(_share(row[name]) for name in names)] for title, row in rows.items()])


def _classes_table(classes: Sequence[Mapping[str, Any]]) -> Table:
    figures = [name for name in classes[0] if name not in ("name", "objects")]
    rows = [[c["name"], str(c["objects"]), *(_share(c[name]) for name in figures)] for c in classes]
    return _table(["class", "objects", *figures], rows)


def draw_curves(precision: Precision, target: Path) -> None:
    """Write a PNG of precision over recall at mask IoU 0.5: each class, and the mean over classes.

    Raises:
        OSError: the file cannot be written.
    """
    classes = [(one, one.curve) for one in precision.classes if one.curve is not None]
    recall = np.linspace(0, 1, 101)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for one, curve in classes:
        if len(classes) > _LEGEND:
            axes.plot(recall, curve, color="0.75", linewidth=0.7)
        else:
            axes.plot(recall, curve, linewidth=1.2, label=f"{_caption(one.name)}, AP50 {one.ap50:.3f}")
    if classes:
        mean = np.mean([curve for _, curve in classes], axis=0)
        label = f"mean of {len(classes)} classes, AP50 {mean.mean():.3f}"
        axes.plot(recall, mean, color="black", linewidth=2.2, label=label)
        for text in axes.legend(loc="lower left").get_texts():
            text.set_parse_math(False)  # a name may hold dollar signs
    axes.set(xlabel="recall", ylabel="precision", title="mask IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # matplotlib draws a box in its place
        figure.savefig(target, dpi=150)


def _caption(name: str) -> str:
    """Return a class name for a legend, on one line; a space keeps matplotlib from hiding names that begin with `_`."""
    line = printable(name).replace("\n", " ")
    short = line if len(line) <= _CAPTION else f"{line[: _CAPTION - 1]}…"
    return f" {short}" if short.startswith("_") else short


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # in a str, rich reads brackets as markup
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
