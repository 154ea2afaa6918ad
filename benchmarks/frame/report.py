"""Results of a part: CSV for whoever computes on, Markdown for people, a picture for the documentation."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .part import Part


@dataclass(frozen=True)
class Table:
    """A table of the Markdown.

    Attributes:
        name: of the section that the documentation includes: file and name, as `--8<-- "PART.md:NAME"`.
        columns: headings.
        lines: cells of each line; None is left empty.
        caption: a sentence above the table.
    """

    name: str
    columns: Sequence[str]
    lines: Sequence[Sequence[Any]]
    caption: str = ""

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.lines]
        return "\n".join("| " + " | ".join(shown(value) for value in line) + " |" for line in lines)


def everything(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return one table of all rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [Table("all", columns, [[row.get(column) for column in columns] for row in rows])]


def pivot(
    rows: Sequence[Mapping[str, Any]], *, name: str, lines: str, columns: str, value: str, caption: str = ""
) -> Table:
    """Return a table with a line for each value of one column and a column for each value of another.

    Args:
        rows: rows of a part, in the order in which they were measured.
        name: name of the table.
        lines: column whose values name the lines.
        columns: column whose values are the headings.
        value: column of the figures; several rows of one place, such as rounds, give their median.
        caption: sentence above the table.
    """
    places: dict[tuple[Any, Any], list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            places.setdefault((row[lines], row[columns]), []).append(row[value])
    headings = list(dict.fromkeys(row[columns] for row in rows))
    medians = {place: statistics.median(values) for place, values in places.items()}
    names = dict.fromkeys(row[lines] for row in rows)
    return Table(
        name,
        [lines.replace("_", " "), *map(str, headings)],
        [[line, *(medians.get((line, heading)) for heading in headings)] for line in names],
        caption,
    )


def shown(value: Any) -> str:
    """Return a value as people read it: three digits, thousands apart."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(part: Part, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, str], folder: Path) -> None:
    """Write all results of a part into a folder; of no rows nothing is written."""
    if not rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / f"{part.name}.csv")
    write_csv([{"name": name, "value": value} for name, value in facts.items()], folder / f"{part.name}_machine.csv")
    picture = f"\n![{part.title}]({part.name}.png)\n" if part.draw else ""
    tables = "\n".join(_section(table) for table in part.tables(rows))
    head = f"# {part.title}\n\n{part.about}\n\n{_measured_on(facts)} ([all facts]({part.name}_machine.csv)).\n"
    (folder / f"{part.name}.md").write_text(f"{head}\n{tables}{picture}")
    if part.draw:
        _draw(part, rows, folder / f"{part.name}.png")


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows with a header; columns are those of all rows, in the order in which they appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        short = ({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        writer.writerows(short)


def _section(table: Table) -> str:
    caption = f"{table.caption}\n\n" if table.caption else ""
    marked = f"<!-- --8<-- [start:{table.name}] -->\n{table.markdown()}\n<!-- --8<-- [end:{table.name}] -->"
    return f"{caption}{marked}\n"


def _measured_on(facts: Mapping[str, str]) -> str:
    software = ", ".join(f"{name} {facts[name]}" for name in ("openvino", "onnxruntime") if name in facts)
    return f"{facts['cpu']}, {facts['cores']} cores; {software}; commit {facts['commit']}, {facts['date']}"


def _draw(part: Part, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 (takes a second; only parts with a picture need it)
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.use("Agg")
    assert part.draw is not None
    figure = Figure(figsize=(9, 4), layout="constrained")
    part.draw([dict(row) for row in rows], figure)
    figure.savefig(path, dpi=110)
