"""Keep the figures of the long chaos tests: the latest run of each test is a row of chaos.csv.

`python tests/chaos_report.py` writes the rows into docs/chaos.md.
"""

import csv
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/chaos.csv"
PAGE = ROOT / "docs/chaos.md"
CORES = len(os.sched_getaffinity(0))  # before a test confines itself
COLUMNS = ("name", "command", "cores", "figures")
BEGIN, END = "<!-- made by tests/chaos_report.py -->\n", "<!-- end -->\n"


def report(name: str, figures: Mapping[str, object]) -> None:
    """Write the row of the running test to chaos.csv, in place of an older row of the same name, and print the figures.

    Args:
        name: what the test does to the server, in a few words.
        figures: the results by name; a name ends with its unit.
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
    print(f"\n{name}: " + ", ".join(f"{figure} {value}" for figure, value in figures.items()))


def updated(page: str) -> str:
    """Return the text of the page with a section for each row of chaos.csv."""
    before, _, rest = page.partition(BEGIN)
    sections = map(_section, sorted(_read(), key=lambda row: row["command"]))
    return f"{before}{BEGIN}\n{''.join(sections)}{END}{rest.partition(END)[2]}"


def _section(row: Mapping[str, str]) -> str:
    figures = json.loads(row["figures"]).items()
    table = "".join(f"| {re.sub('(?<=[a-z0-9])_', ' ', figure)} | {value} |\n" for figure, value in figures)
    cores = "1 core" if row["cores"] == "1" else f"{row['cores']} cores"
    head = f"### {row['name'][0].upper()}{row['name'][1:]}\n\nOn {cores}:\n\n```bash\n{row['command']}\n```\n\n"
    return f"{head}| figure | value |\n|---|---|\n{table}\n"


def _read() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
