"""Keep the figures of the long chaos tests: one row a test in benchmarks/results/chaos.csv, the latest run of each."""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks/results/chaos.csv"
COLUMNS = ("name", "command", "cores", "figures")


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
        "cores": os.cpu_count(),
        "figures": json.dumps(dict(figures)),
    }
    rows = [other for other in _read() if other["name"] != name] + [row]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{name}: " + ", ".join(f"{figure} {value}" for figure, value in figures.items()))


def _read() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))
