"""Figures of the long chaos tests: the latest run of each is a row of chaos.csv, and of the table in docs/chaos.md.

`python tests/chaos_report.py` makes the table anew.
"""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/chaos.csv"
PAGE = ROOT / "docs/chaos.md"
CORES = len(os.sched_getaffinity(0))  # before a test confines itself
COLUMNS = ("name", "command", "cores", "figures")
BEGIN, END = "<!-- made by tests/chaos_report.py -->\n", "<!-- end -->\n"


def report(name: str, figures: Mapping[str, object]) -> None:
    """Write the row of the running test, in place of an earlier one of the same name, and print it.

    Args:
        name: what was done, in a few words.
        figures: what came out, each with its unit in the name.
    """
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    row = {
        "name": name,
        "command": f"pytest -m chaos '{test}'",
        "cores": CORES,
        "figures": json.dumps(dict(figures)),
    }
    rows = [other for other in _read() if other["name"] != name] + [row]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    PAGE.write_text(updated(PAGE.read_text()))
    print(f"\n{name}: " + ", ".join(f"{figure} {value}" for figure, value in figures.items()))


def updated(page: str) -> str:
    """Return the text of the page with the table of what the CSV holds."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{_table()}\n{END}{rest.partition(END)[2]}"


def _table() -> str:
    lines = ["| what was done | what came out | cores | command |", "|---|---|---|---|"]
    for row in sorted(_read(), key=lambda row: row["command"]):
        figures = (f"{name.replace('_', ' ')} **{value}**" for name, value in json.loads(row["figures"]).items())
        lines.append(f"| {row['name']} | {', '.join(figures)} | {row['cores']} | `{row['command']}` |")
    return "\n".join(lines) + "\n"


def _read() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
