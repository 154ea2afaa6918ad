"""A million pictures in small: shards of `m2f predict`, some of them killed and run again, then `m2f merge`.

    python -m benchmarks.shards --images 200000 --shards 8 --kills 3

The server is the real one; its engine sleeps and answers with the logits of a drawn scene, so that two cores suffice.
The run fails unless the merged file has each picture once, with its own size.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import psutil

from m2f_server import serve

from .frame import Part, Row, Table, machine, report
from .sleeping_engine import embedded, sleeping_repository

RESULTS = Path(__file__).resolve().parent / "results"
M2F = str(Path(sys.prefix) / "bin/m2f")
PICTURES = 400  # that differ, each of a size of its own; all others are links to them
LOOK_S = 0.1  # between two looks at a shard
EARLY = 0.25  # of a process's images; from here to its end its memory must not grow
MB = 1e6


@dataclass
class Shard:
    """What is known of one shard.

    Attributes:
        index: number of the shard.
        killed_at: share of its images after which it is killed; None: it is not.
        tries: number of processes.
        seconds: time of all of them.
        images: number of images, known at the end.
        memory: lines of the journal and resident bytes of the last process, from its first line on.
    """

    index: int
    killed_at: float | None
    tries: int = 0
    seconds: float = 0.0
    images: int = 0
    memory: list[tuple[int, int]] = field(default_factory=list)

    def row(self) -> Row:
        """Return the figures of the shard."""
        first, last = self.memory[0][0], self.memory[-1][0]
        early = next(size for lines, size in self.memory if lines >= first + EARLY * (last - first))
        return {
            "shard": self.index,
            "images": self.images,
            "killed_after": None if self.killed_at is None else f"{self.killed_at:.0%}",
            "processes": self.tries,
            "images_s": self.images / self.seconds,
            "early_mb": early / MB,
            "last_mb": self.memory[-1][1] / MB,
            "most_mb": max(size for _, size in self.memory) / MB,
        }


def make_pictures(folder: Path, images: int) -> dict[str, tuple[int, int]]:
    """Fill a folder, and return width and height by name. Pictures are links, so a million takes no room."""
    sizes = {}
    (folder / "pictures").mkdir()
    for number in range(images):
        name = f"pictures/{number:07d}.jpg"
        kind = number % PICTURES
        sizes[name] = (32 + kind % 20, 32 + kind // 20)
        if number < PICTURES:
            width, height = sizes[name]
            pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
            (folder / name).write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
        else:
            (folder / name).hardlink_to(folder / f"pictures/{kind:07d}.jpg")
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in sizes))
    return sizes


def run_shard(shard: Shard, count: int, images: int, folder: Path, url: str) -> None:
    """Run a shard to its end; kill it first if it is one to be killed.

    Raises:
        RuntimeError: a process failed.
    """
    journal = folder / f"part-{shard.index}.jsonl"
    command = [M2F, "predict", "--list", "names.txt", "--shard", f"{shard.index}/{count}", "--jsonl", str(journal)]
    kill_at = None if shard.killed_at is None else shard.killed_at * images / count
    started = time.monotonic()
    while True:
        shard.tries += 1
        with (
            (folder / f"errors-{shard.index}").open("w+") as errors,
            subprocess.Popen([*command, "--url", url], cwd=folder, stdout=subprocess.DEVNULL, stderr=errors) as process,
        ):
            code = watch(process, shard, journal, kill_at if shard.tries == 1 else None)
            if code > 0:
                errors.seek(0)
                raise RuntimeError(f"shard {shard.index} failed with exit code {code}: {errors.read()[-600:]}")
        if code == 0:
            break
    shard.seconds = time.monotonic() - started
    shard.images = journal.read_bytes().count(b"\n") - 1  # its last line says that it is complete


def watch(process: subprocess.Popen[bytes], shard: Shard, journal: Path, kill_at: float | None) -> int:
    """Note the memory of a process until its end, and kill it at a number of lines; return its exit code."""
    shard.memory = []
    before = journal.read_bytes().count(b"\n") if journal.exists() else 0
    place = lines = 0
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(LOOK_S)
        if journal.exists():
            with journal.open("rb") as file:
                file.seek(place)
                new = file.read()
            place, lines = place + len(new), lines + new.count(b"\n")
        resident = seen.memory_info().rss  # 0 of a process that has ended
        if resident and lines > before:
            shard.memory.append((lines, resident))
        if kill_at is not None and lines >= kill_at:
            process.kill()
    return process.wait()


def merge(folder: Path, count: int) -> Row:
    """Merge the journals; return time and memory.

    Raises:
        RuntimeError: the parts were refused.
    """
    parts = [f"part-{index}.jsonl" for index in range(count)]
    started, most = time.monotonic(), 0
    command = [M2F, "merge", *parts, "--out", "all.json"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            most = max(most, seen.memory_info().rss)
            time.sleep(LOOK_S)
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"m2f merge: {errors[-600:]}")
    return {"merge_s": time.monotonic() - started, "merge_mb": most / MB}


def check(path: Path, sizes: dict[str, tuple[int, int]]) -> Row:
    """Return how many pictures the merged file has, misses, has several times, and has with another size."""
    document = json.loads(path.read_text())
    times = Counter(image["file_name"] for image in document["images"])
    wrong = sum(sizes.get(image["file_name"]) != (image["width"], image["height"]) for image in document["images"])
    of_no_image = {row["image_id"] for row in document["annotations"]} - {image["id"] for image in document["images"]}
    return {
        "pictures": len(sizes),
        "missing": len(sizes.keys() - times.keys()),
        "several_times": sum(number > 1 for number in times.values()),
        "wrong": wrong + len(of_no_image),
        "failed": len(document["errors"]),
    }


def measured(images: int, count: int, kills: int, at_once: int) -> list[Row]:
    """Run all shards and the merge; return a row for each shard, and a last one for the whole.

    Raises:
        RuntimeError: a shard or the merge failed, or a picture is not there exactly once.
    """
    chosen = random.Random(images)  # noqa: S311 (the same shards each time)
    killed = {index: chosen.uniform(0.1, 0.9) for index in chosen.sample(range(count), kills)}
    shards = [Shard(index, killed.get(index)) for index in range(count)]
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with tempfile.TemporaryDirectory(prefix="m2f_benchmark_") as text:
        folder = Path(text)
        sizes = make_pictures(folder, images)
        with sleeping_repository(embedded()) as repository, serve(model_repository=repository, **ports) as server:
            url, started = f"grpc://{server.grpc_url}", time.monotonic()
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(lambda shard: run_shard(shard, count, images, folder, url), shards))
            seconds = time.monotonic() - started
        whole = {"shard": "all", "images": sum(shard.images for shard in shards), "images_s": images / seconds}
        whole |= {"processes": sum(shard.tries for shard in shards), "seconds": seconds, "at_once": at_once}
        whole |= merge(folder, count) | check(folder / "all.json", sizes)
    if whole["missing"] or whole["several_times"] or whole["wrong"] or whole["failed"]:
        raise RuntimeError(f"not each picture exactly once: {whole}")
    return [*(shard.row() for shard in shards), whole]


OF_SHARD = {
    "shard": "shard",
    "images": "images",
    "killed_after": "killed after",
    "processes": "processes",
    "images_s": "images/s",
    "early_mb": f"MB at {EARLY:.0%}",
    "last_mb": "MB at the end",
    "most_mb": "MB at most",
}
OF_ALL = {
    "pictures": "pictures",
    "processes": "processes",
    "seconds": "s",
    "images_s": "images/s",
    "missing": "missing",
    "several_times": "several times",
    "wrong": "wrong",
    "failed": "failed",
    "merge_s": "merge, s",
    "merge_mb": "merge, MB at most",
}


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return a table of the whole and a table of the shards."""
    *shards, whole = rows
    return [
        Table("whole", list(OF_ALL.values()), [[whole[name] for name in OF_ALL]], "All shards, and their merged file:"),
        Table("shards", list(OF_SHARD.values()), [[row[name] for name in OF_SHARD] for row in shards], "The shards:"),
    ]


def main() -> int:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards")
    parser.add_argument("--images", type=int, default=20_000, help="number of pictures (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=8, help="number of shards (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=3, help="shards that are killed once (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=4, help="shards that run at once (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    given = parser.parse_args()
    facts = machine.describe()
    rows = measured(given.images, given.shards, given.kills, given.at_once)
    part = Part(
        name="shards",
        title="A run in shards, some of them killed",
        about=(
            f"{given.images:,} small pictures in {given.shards} shards of `m2f predict`, {given.at_once} at once; "
            f"{given.kills} of them killed with SIGKILL at a random image and run again; then `m2f merge`. The engine "
            "sleeps, because the server shares these cores."
        ),
        cells=[],
        measure=lambda *_: [],
        tables=tables,
    )
    report.write(part, rows, facts, given.results)
    sys.stdout.write((given.results / "shards.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
