"""Measure everything, and write CSV, Markdown and pictures: `python -m benchmarks [PART ...]`.

Run the same command again after Ctrl-C, a kill or a failure: it measures what is missing.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .frame import Part, machine, report
from .frame.journal import Journal
from .frame.runner import Missing, run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
# modules of this package, in the order of `make bench`
PARTS: Sequence[str] = (
    "peers",
    "engines",
    "serving",
    "predict",
    "shared_memory",
    "head",
    "knee",
)
STOPPED = 130  # the exit code after Ctrl-C


def main(parts: Sequence[str] = PARTS) -> int:
    """Measure, and return 0 if every cell has figures or cannot be measured here.

    Args:
        parts: modules of this package to choose from.
    """
    arguments = _arguments(parts)
    served = {name: value for name in ("repository", "model") if (value := getattr(arguments, name))}
    results: Path = arguments.results / "quick" if arguments.quick else arguments.results
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, _stop)
    with _only_run(results / "journal"):
        try:
            missing = measure(
                arguments.parts or parts, results, console, fresh=arguments.fresh, quick=arguments.quick, **served
            )
        except KeyboardInterrupt:
            console.print(f"stopped; what was measured is in {results}. Run the same command again to go on.")
            return STOPPED
    for gap, cells in Counter(map(str, missing)).items():
        console.print(gap if cells == 1 else f"{gap} ({cells} cells)", highlight=False, markup=False, soft_wrap=True)
    console.print(f"results: {results}", highlight=False, markup=False, soft_wrap=True)
    return int(any(gap.failed for gap in missing))


def measure(
    names: Sequence[str], results: Path, console: Console, *, fresh: bool = False, **options: Any
) -> list[Missing]:
    """Measure parts in turn, write the results of each, and return the cells without figures.

    Args:
        names: names of the modules.
        results: folder to write to.
        console: for the progress.
        fresh: whether to measure again what has been measured.
        options: arguments of the modules' `part`.
    """
    facts = {**machine.describe(), **{name: str(value) for name, value in options.items()}}
    missing: list[Missing] = []
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console) as progress:
        for name in names:
            try:
                part: Part = importlib.import_module(f"benchmarks.{name}").part(**options)
            except Exception as error:  # a part that cannot be read does not end the others
                missing.append(Missing(name, {}, f"{type(error).__name__}: {error}", failed=True))
                continue
            journal = Journal(results / f"journal/{name}.jsonl", facts, fresh=fresh)
            if journal.begun_anew:
                console.print(
                    f"{name}: begun anew, other {', '.join(journal.begun_anew)}", highlight=False, markup=False
                )
            try:
                missing += run(part, journal, progress)
            finally:
                report.write(part, journal.rows(part.cells), journal.facts, results)
    return missing


def _arguments(parts: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer cells, in 3 minutes; results in a folder `quick`")
    parser.add_argument("--fresh", action="store_true", help="measure again what has been measured")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    own = parser.add_argument_group("part `serving` on a model of your own; needs --results")
    own.add_argument("--repository", type=Path, help="folder of models")
    own.add_argument("--model", help="name of a public model in it (default: mask2former)")
    arguments = parser.parse_args()
    if (arguments.repository or arguments.model) and (arguments.parts != ["serving"] or arguments.results == RESULTS):
        parser.error("--repository and --model are of part serving, and need --results: serving --results FOLDER")
    if unknown := sorted(set(arguments.parts) - set(parts)):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    return arguments


@contextmanager
def _only_run(folder: Path) -> Iterator[Any]:
    """Hold the lock of a folder of journals."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"benchmarks: another run is writing to {folder.parent}")
        yield file


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
