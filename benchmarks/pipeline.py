"""What the pipeline around the engine costs: processor time of each process for an image, beside a sleeping engine.

    python -m benchmarks.pipeline [--images 200] [--in-flight 4] [--sleep 0] [--dtype FP32 FP16] [--perf FOLDER]

The engine's own process is not counted as the pipeline's: it answers from memory that it has filled before. The
server's part has Triton's copies of the tensors in it. `faults` are memory pages that the kernel had to find: 0.1 to
0.5 us each.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.sleeping_engine import DTYPES, Work, embedded, production, sleeping_repository
from m2f_client import Client, Result
from m2f_server import Server, serve
from m2f_server.stubs import Stubs

SERVER, ENGINE, CLIENT = "tritonserver", "engine", "client (not counted)"
SIZES = {"embedded": embedded, "production": production}
_TICKS = os.sysconf("SC_CLK_TCK")
_WARM_UP = 60  # images


@dataclass(frozen=True)
class Row:
    """What one process used for an image.

    Attributes:
        work: the sizes.
        dtype: datatype of the engine's mask logits.
        process: which: the server, the model that a stub runs, or the client.
        user_ms, system_ms: processor time.
        faults: memory pages that the kernel had to find.
        resident_mb: memory at the end, with what is shared with other processes.
    """

    work: str
    dtype: str
    process: str
    user_ms: float
    system_ms: float
    faults: float
    resident_mb: float

    @property
    def total_ms(self) -> float:
        """Processor time."""
        return self.user_ms + self.system_ms


@dataclass(frozen=True)
class _Usage:
    user_s: float
    system_s: float
    faults: int
    resident_bytes: int


def measure(
    work: Work,
    *,
    dtype: str = "FP32",
    images: int = 200,
    in_flight: int = 4,
    sleep_ms: float = 0.0,
    perf: Path | None = None,
) -> tuple[list[Row], float]:
    """Serve the sleeping engine and send the picture.

    Args:
        work: what is sent, and what the engine answers.
        dtype: datatype of the engine's mask logits.
        images: how many requests.
        in_flight: how many at a time.
        sleep_ms: milliseconds that the engine sleeps for an image.
        perf: folder for the samples of `perf record` on each process; None: not sampled.

    Returns:
        A row for each process, and the images per second.
    """
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        sleeping_repository(work, milliseconds=sleep_ms, dtype=dtype) as repository,
        serve(model_repository=repository, **ports) as server,
        Client(server.grpc_url) as client,
    ):
        processes = _processes(server)
        _check(client.predict(work.picture), work)
        _drive(client, work.picture, _WARM_UP, in_flight)
        with ExitStack() as stack:
            if perf:
                stack.enter_context(_recorded(processes, perf))
            before, started = _usages(processes), time.perf_counter()
            _drive(client, work.picture, images, in_flight)
            seconds, after = time.perf_counter() - started, _usages(processes)
    rows = [
        Row(
            work.name,
            dtype,
            name,
            (after[name].user_s - before[name].user_s) * 1e3 / images,
            (after[name].system_s - before[name].system_s) * 1e3 / images,
            (after[name].faults - before[name].faults) / images,
            after[name].resident_bytes / 1e6,
        )
        for name in processes
    ]
    return rows, images / seconds


def _processes(server: Server) -> dict[str, list[int]]:
    """Return the ids of the server's processes and of this one, by what they run."""
    stubs = Stubs(server.pid)
    found = {SERVER: [server.pid]}
    for model in server.models:
        if pids := [stub.pid for stub in stubs.of(model)]:
            found[model.partition("_")[2]] = pids
    return {**found, CLIENT: [os.getpid()]}


def _usages(processes: Mapping[str, Sequence[int]]) -> dict[str, _Usage]:
    return {name: _usage(pids) for name, pids in processes.items()}


def _usage(pids: Sequence[int]) -> _Usage:
    """Return what some processes have used so far."""
    rows = [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split() for pid in pids]
    user, system, faults, pages = (sum(int(row[place]) for row in rows) for place in (11, 12, 7, 21))
    return _Usage(user / _TICKS, system / _TICKS, faults, pages * os.sysconf("SC_PAGE_SIZE"))


def _check(result: Result, work: Work) -> None:
    """Compare an answer with the scene.

    Raises:
        ValueError: the pipeline does not give the scene's instances.
    """
    wanted = int((work.scene.cls_logits.argmax(axis=1) < work.scene.cls_logits.shape[1] - 1).sum())
    if not 0 < len(result) <= wanted:
        raise ValueError(f"{work.name}: {len(result)} instances; the scene has {wanted}")


def _drive(client: Client, picture: bytes, images: int, in_flight: int) -> None:
    """Send the picture many times; an error ends the benchmark."""
    turns, errors = iter(range(images)), []
    lock = threading.Lock()

    def run() -> None:
        try:
            while not errors:
                with lock:
                    if next(turns, None) is None:
                        return
                client.predict(picture)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(in_flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def _recorded(processes: Mapping[str, Sequence[int]], folder: Path) -> Iterator[None]:
    """Sample the call stacks of each process; read a file with `perf report -i FILE`."""
    folder.mkdir(parents=True, exist_ok=True)
    recorders = []
    for name, pids in processes.items():
        if name != CLIENT:
            command = ["perf", "record", "-q", "-g", "-F", "999", "-p", ",".join(map(str, pids))]
            recorders.append(subprocess.Popen([*command, "-o", str(folder / f"{name}.data")]))
    time.sleep(0.5)  # perf attaches
    try:
        yield
    finally:
        for recorder in recorders:
            recorder.terminate()
            recorder.wait()


def table(rows: Sequence[Row]) -> Table:
    """Format the rows of one measurement for people."""
    result = Table(
        "process",
        "ms an image",
        "user",
        "system",
        "page faults",
        "resident MB",
        box=None,
        title=f"{rows[0].work}, {rows[0].dtype}",
    )
    for row in sorted(rows, key=lambda row: -row.total_ms):
        if row.total_ms >= 0.05:
            numbers = (row.total_ms, row.user_ms, row.system_ms)
            result.add_row(
                row.process, *(f"{value:.2f}" for value in numbers), f"{row.faults:.0f}", f"{row.resident_mb:.0f}"
            )
    outside = sum(row.total_ms for row in rows if row.process not in (ENGINE, CLIENT))
    result.add_row("all but engine and client", f"{outside:.2f}")
    return result


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["FP32"], help="of the engine's mask logits")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--sleep", type=float, default=0.0, help="milliseconds that the engine sleeps for an image")
    parser.add_argument("--perf", type=Path, help="folder for the samples of `perf record`")
    parser.add_argument("--results", type=Path, help="CSV file to write")
    options = parser.parse_args()
    rows: list[Row] = []
    for size in options.size:
        for dtype in options.dtype:
            found, rate = measure(
                SIZES[size](), dtype=dtype, images=options.images, in_flight=options.in_flight, sleep_ms=options.sleep,
                perf=options.perf / f"{size}_{dtype}" if options.perf else None,
            )  # fmt: skip
            Console().print(table(found), f"{rate:.1f} images/s\n")
            rows += found
    if options.results:
        write(rows, options.results)


if __name__ == "__main__":
    sys.exit(main())
