"""The HTML of the page: the table of instances, the table of times, and error notices."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from m2f_client.converters.draw import colour
from m2f_client.page.timed_client import TimedAnswer
from m2f_client.result import Result

MAX_ROWS = 1000
"""Instances in the table: of one request there are not more, of many tiles there may be."""

CSS = """
.m2f-html .html-container { padding: 0; overflow-x: auto; }
.m2f-table { width: 100%; margin: 0; border-collapse: collapse; font-variant-numeric: tabular-nums; line-height: 1.5; }
.m2f-table caption { text-align: left; padding-bottom: var(--spacing-md); }
.m2f-table caption span, .m2f-table th { font-weight: 400; opacity: 0.7; }
.m2f-table tr { border-bottom: 1px solid var(--border-color-primary); }
.m2f-table th, .m2f-table td { padding: var(--spacing-sm) 0 var(--spacing-sm) var(--spacing-lg); text-align: right; }
.m2f-table th:first-child, .m2f-table td:first-child { padding-left: 0; text-align: left; overflow-wrap: break-word; }
.m2f-table td:first-child[style] {
  padding-left: 1.4em; background: linear-gradient(var(--swatch) 0 0) left / 0.8em 0.8em no-repeat;
}
.m2f-table td:not(:first-child) { white-space: nowrap; }
.m2f-table .bar { width: 45%; }
.m2f-table .bar span { display: block; height: 0.7em; min-width: 1px; background: var(--color-accent); }
.m2f-table .sum { font-weight: 700; border-bottom: none; }
.m2f-notice {
  padding: var(--spacing-lg); border-left: 4px solid var(--error-icon-color); border-radius: var(--radius-sm);
  background: var(--error-background-fill); color: var(--error-text-color); overflow-wrap: anywhere;
}
[data-testid="upload-icon"] { display: none !important; }
#m2f-examples .gallery { flex-wrap: nowrap; overflow-x: auto; }
#m2f-examples .gallery-item { flex: none; }
#m2f-examples .container { width: 60px; height: 60px; }
#m2f-examples img { width: 100%; height: 100%; object-fit: cover; }
"""


def notice(message: str) -> str:
    """Return an error message; `role="alert"` makes screen readers speak it at once."""
    return f'<div class="m2f-notice" role="alert">{escape(message)}</div>'


def instances_table(result: Result, class_names: Sequence[str] | None) -> str:
    """Return a table with a row for each instance: colour in the picture, class, score, box and area."""
    height, width = result.size
    count = f"{len(result)} instance" + ("" if len(result) == 1 else "s")
    head = ("class", "score", "x1", "y1", "x2", "y2", "area")
    rows = []
    for index, name in enumerate(result.names(class_names)[:MAX_ROWS]):
        red, green, blue = colour(index)
        swatch = f'style="--swatch: rgb({red}, {green}, {blue})"'
        box = (f"{side:.0f}" for side in result.boxes[index].tolist())
        numbers = (f"{result.scores[index]:.3f}", *box, f"{result.areas[index]}")
        rows.append(_row(f"<td {swatch}>{escape(name)}</td>", *(f"<td>{number}</td>" for number in numbers)))
    rest = f"; the best {MAX_ROWS} are listed" if len(result) > MAX_ROWS else ""
    return _table(f"<b>{count}</b> <span>in {width} x {height} pixels{rest}</span>", head, rows)


def latency_table(answer: TimedAnswer, model: str) -> str:
    """Return a table with a row and a bar for each step of the server, and the client's total time.

    For one request there is a row for the rest of the total too. Tiles are in work at the same time, so that the means
    of their steps do not add up to a total.

    Args:
        answer: the answer and its times.
        model: name of the model; the names of its steps are shown without it.
    """
    spent = {step.name.removeprefix(f"{model}_"): step.work_ms for step in answer.steps}
    if spent:
        spent["waiting for a step"] = sum(step.wait_ms for step in answer.steps)
    if spent and answer.requests == 1:
        # a step may begin before the previous one has cleaned up, so the sum can slightly exceed the total
        spent["network, rest"] = max(0.0, answer.total_ms - sum(spent.values()))
    longest = max(spent.values(), default=0.0) or 1.0
    rows = [
        _row(
            f"<td>{escape(name)}</td>",
            f"<td>{ms:.1f}</td>",
            f'<td class="bar"><span style="width: {ms / longest:.1%}"></span></td>',
        )
        for name, ms in spent.items()
    ]
    of = "total" if answer.requests == 1 else f"total of {answer.requests} tiles"
    total = _row(f"<td>{of}</td>", f"<td>{answer.total_ms:.1f}</td>", "<td></td>", kind="sum")
    each = "" if answer.requests == 1 else " for a tile"
    source = f"by step{each}, measured by the server" if spent else "the server does not report its steps"
    return _table(f"<b>Latency</b> <span>{source}</span>", ("step", "ms", ""), [*rows, total])


def _row(*cells: str, kind: str = "") -> str:
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _table(caption: str, head: Sequence[str], rows: Sequence[str]) -> str:
    titles = _row(*(f'<th scope="col">{title}</th>' for title in head))
    return (
        f'<table class="m2f-table"><caption>{caption}</caption>'
        f"<thead>{titles}</thead><tbody>{''.join(rows)}</tbody></table>"
    )
