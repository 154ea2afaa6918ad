"""The table on screen: one an image."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from m2f_client.converters.draw import colour
from m2f_client.printable import printable
from m2f_client.result import Result


def instances_table(title: str, result: Result, class_names: Sequence[str] | None, written: str = "") -> RenderableType:
    """Return class, score, box and area of each instance, with a swatch of its colour in the overlay.

    Args:
        title: name of the image.
        result: needs the structured outputs.
        class_names: the model's names; None shows class numbers.
        written: the files made, shown below.
    """
    height, width = result.size
    count = f"{len(result)} instance" + ("" if len(result) == 1 else "s")
    parts: list[RenderableType] = [Text.assemble((printable(title), "bold"), f"  {width}x{height}, {count}")]
    if len(result):
        parts.append(_rows(result, class_names))
    if written:
        parts.append(Text(printable(f"wrote {written}"), style="dim"))
    return Group(*parts, Text())


def _rows(result: Result, class_names: Sequence[str] | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for column in ("score", "x1", "y1", "x2", "y2", "area"):
        table.add_column(column, justify="right")
    for index, name in enumerate(result.names(class_names)):
        red, green, blue = colour(index)
        swatch = Text.assemble(("■ ", f"rgb({red},{green},{blue})"), printable(name))
        numbers = [f"{value:.0f}" for value in (*result.boxes[index].tolist(), result.areas[index])]
        table.add_row(swatch, f"{result.scores[index]:.3f}", *numbers)
    return table
