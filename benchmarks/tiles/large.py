"""A TIFF of 20,000 x 20,000 pixels with `m2f predict --tile`: memory, time for each tile, and a kill in the middle.

The picture is written and read in windows, so it is never in memory as a whole. The server counts its requests.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import tritonclient.http

from m2f.contract import PUBLIC_MODEL
from m2f.runs import Rect
from m2f.tiles import grid
from m2f_client import Client
from m2f_client.pictures.opening import open_picture
from m2f_server import serve

from ..frame import Part, Row, Table
from .ground import one_ground
from .mosaic import CELL, ROOT, Mask, Pixels
from .scores import SURE, Found, Outcome, outcomes, placed
from .tiff import write_tiff

M2F = str(Path(sys.prefix) / "bin/m2f")
SIDE, QUICK_SIDE = 20_000, 4_000
TILE, OVERLAP, IN_FLIGHT = 336, 0.2, 4  # pixels, about those of a scene
SCENES, BLOCK = 6, 2_000  # a block is a picture of 6 x 6 scenes, enlarged; turned and mirrored it fills the TIFF
KILL_AT = 0.5  # share of the tiles that are done
SINGLES = 300  # requests, before and after the run
LOOK_S = 0.2
MB = 1e6


def part(*, quick: bool) -> Part:
    """Return the run as one cell."""
    return Part(
        name="tiles_large",
        title="A large TIFF",
        about=(
            f"`m2f predict --tile {TILE} --overlap {OVERLAP} --concurrency {IN_FLIGHT}` on a tiled TIFF. The process "
            f"is killed with SIGKILL when {KILL_AT:.0%} of the tiles are done, and the same command is run again."
        ),
        cells=[{"side": QUICK_SIDE if quick else SIDE}],
        measure=measured,
        limit_s=1200,
        tables=tables,
    )


def measured(_: object, *, side: int) -> list[Row]:
    """Write the picture, run the command twice, and count."""
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    repository = ROOT / "model_repository"
    with (
        TemporaryDirectory(prefix="m2f_benchmark_") as name,
        serve(model_repository=repository, config_name="cpu", **ports) as server,
    ):
        folder, url = Path(name), f"grpc://{server.grpc_url}"
        truth = write(folder / "large.tif", side)
        tiles = [tile.rect for tile in grid(side, side, tile=TILE, overlap=OVERLAP)]
        asked = Requests(server.http_url)
        single = [singles(url, folder / "large.tif", tiles)]
        beside = overhead(folder, url, asked)
        asked.reset()
        first = run(folder, url, kill_at=int(len(tiles) * KILL_AT))
        kept, asked_first = lines_kept(folder), asked.count() - beside
        asked.reset()
        second = run(folder, url)
        asked_second = asked.count() - beside
        single.append(singles(url, folder / "large.tif", tiles))
        found = list(read(folder / "large.jsonl"))
    row = {
        "tiles": len(tiles),
        "kept_at_the_kill": kept,
        "asked_by_the_first": asked_first,
        "asked_by_the_second": asked_second,
        "asked_again": asked_second - (len(tiles) - kept),
        "ms_a_tile": second.seconds_a_tile * 1e3,
        "ms_a_request": sum(single) / len(single) * 1e3,
        "merge_s": second.after_s,
        "peak_mb": max(first.peak, second.peak) / MB,
        "tile_row_mb": TILE * side * 3 / MB,
    }
    return [row | found_of(truth, found)]


def found_of(truth: Sequence[Found], found: Sequence[Found]) -> Row:
    """Return how many objects there are, and how many were found once."""
    became = Counter(outcomes(truth, found))
    sure = sum(one.score >= SURE for one in found)
    return {"objects": len(truth), "instances": sure} | {outcome.name.lower(): became[outcome] for outcome in Outcome}


def write(path: Path, side: int) -> list[Found]:
    """Write the picture, and return its objects."""
    pixels, masks = block()
    places = [(x * BLOCK, y * BLOCK) for y, x in np.ndindex(side // BLOCK, side // BLOCK)]
    pieces = ((x, y, turned(pixels, number)) for number, (x, y) in enumerate(places))
    write_tiff(path, side, side, pieces, block=TILE, compress="deflate", zlevel=1)
    truth = []
    for number, (x, y) in enumerate(places):
        for label, mask in masks:
            small, left, upper = trimmed(turned(mask, number))
            truth.append(Found(0, label, 1.0, placed(small, x + left, y + upper, side, side)))
    return truth


def block() -> tuple[Pixels, list[tuple[int, Mask]]]:
    """Return 6 x 6 scenes on one ground, enlarged, and class and mask of each object."""
    scene = one_ground(SCENES)

    def enlarged(image: Any) -> Any:
        return cv2.resize(image, (BLOCK, BLOCK), interpolation=cv2.INTER_LINEAR)

    masks = []
    for thing in scene.things:
        whole = np.zeros(scene.pixels.shape[:2], np.uint8)
        whole[thing.y : thing.y + CELL, thing.x : thing.x + CELL] = thing.mask * 255
        masks.append((thing.label, enlarged(whole) > 127))
    return enlarged(scene.pixels), masks


def turned(image: Any, number: int) -> Any:
    """Return an image turned or mirrored in one of eight ways."""
    turned_by = np.rot90(image, number % 4)
    return turned_by[:, ::-1] if number // 4 % 2 else turned_by


def trimmed(mask: Mask) -> tuple[Mask, int, int]:
    """Return a mask as small as its object, and where that lies."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], int(columns[0]), int(rows[0])


class Requests:
    """The server's own count of requests.

    Args:
        http_url: address of the server.
    """

    def __init__(self, http_url: str) -> None:
        self._url, self._before = http_url.removeprefix("http://"), 0

    def count(self) -> int:
        """Return the number of requests since the last reset; waits until those in flight have ended."""
        while (now := self._now()) != (time.sleep(1.0), self._now())[1]:
            pass
        return now - self._before

    def reset(self) -> None:
        """Count from here."""
        self._before += self.count()

    def _now(self) -> int:
        with tritonclient.http.InferenceServerClient(self._url) as client:
            models = client.get_inference_statistics(PUBLIC_MODEL)["model_stats"]
        return sum(int(model["inference_count"]) for model in models)


def singles(url: str, path: Path, tiles: Sequence[Rect]) -> float:
    """Return the seconds for each of some tiles as single requests, as many in flight; their pixels are in memory."""
    chosen = tiles[:: max(1, len(tiles) // SINGLES)]
    picture = open_picture(path)
    try:
        windows = [picture.window(rect) for rect in chosen]
    finally:
        picture.close()
    with Client(url) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
        client.predict(windows[0])
        started = time.monotonic()
        list(pool.map(client.predict, windows))
        return (time.monotonic() - started) / len(windows)


def overhead(folder: Path, url: str, asked: Requests) -> int:
    """Return the requests of the command beside its images."""
    cv2.imwrite(str(folder / "small.png"), np.zeros((TILE, TILE, 3), np.uint8))
    asked.reset()
    subprocess.run(command("small", url, "small.png"), cwd=folder, check=True, capture_output=True)
    return asked.count() - 1


def command(name: str, url: str, picture: str) -> list[str]:
    """Return the command line."""
    options = ["--tile", str(TILE), "--overlap", str(OVERLAP), "--concurrency", str(IN_FLIGHT), "--url", url]
    return [M2F, "predict", picture, "--jsonl", f"{name}.jsonl", *options]


@dataclass
class Process:
    """What was seen of one process.

    Attributes:
        peak: its highest resident size in bytes.
        ends: when a number of tiles was kept.
        after_s: seconds from the last tile to the end of the process.
    """

    peak: int = 0
    ends: list[tuple[float, int]] = field(default_factory=list)
    after_s: float = 0.0

    @property
    def seconds_a_tile(self) -> float:
        """Seconds from the first tile that was seen to the last, for each tile."""
        (begun, first), (ended, last) = self.ends[0], self.ends[-1]
        return (ended - begun) / (last - first)


def run(folder: Path, url: str, *, kill_at: int | None = None) -> Process:
    """Run the command on the large picture; kill it once a number of tiles is kept.

    Raises:
        RuntimeError: the command failed.
    """
    seen, before = Process(), lines_kept(folder)
    with (
        (folder / "errors").open("w+") as errors,
        subprocess.Popen(
            command("large", url, "large.tif"), cwd=folder, stdout=subprocess.DEVNULL, stderr=errors
        ) as process,
    ):
        while process.poll() is None:
            seen.peak = max(seen.peak, _peak(process.pid))
            kept = lines_kept(folder)
            if kept > before and (not seen.ends or kept > seen.ends[-1][1]):
                seen.ends.append((time.monotonic(), kept))
            if kill_at is not None and kept >= kill_at:
                process.send_signal(signal.SIGKILL)
            time.sleep(LOOK_S)
        seen.after_s = time.monotonic() - seen.ends[-1][0] if seen.ends else 0.0
        errors.seek(0)
        if process.returncode != (0 if kill_at is None else -signal.SIGKILL):
            raise RuntimeError(f"m2f predict ended with {process.returncode}: {errors.read()[-600:]}")
    return seen


def _peak(pid: int) -> int:
    """Return the highest resident size of a process so far; 0 of one that has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def lines_kept(folder: Path) -> int:
    """Return how many tiles the command has kept; the first line of its file is no tile."""
    files = list((folder / "large.jsonl.tiles").glob("*.jsonl"))
    return sum(max(0, file.read_bytes().count(b"\n") - 1) for file in files)


def read(path: Path) -> Iterator[Found]:
    """Return the instances in a journal."""
    for text in path.read_text().splitlines():
        for instance in json.loads(text).get("instances", ()):
            yield Found(0, instance["category_id"] - 1, instance["score"], instance["segmentation"])


COLUMNS = {
    "side": "side",
    "objects": "objects",
    "once": "found once",
    "several_times": "several times",
    "not": "not",
    "tiles": "tiles",
    "kept_at_the_kill": "done at the kill",
    "asked_by_the_second": "asked after it",
    "asked_again": "asked twice",
    "ms_a_tile": "ms a tile",
    "ms_a_request": "ms a single request",
    "merge_s": "after the last tile, s",
    "peak_mb": "peak, MB",
    "tile_row_mb": "a row of tiles, MB",
}


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return the figures of the run, one to a line."""
    lines = [[title, *(row[name] for row in rows)] for name, title in COLUMNS.items()]
    return [Table("large", ["", *(f"{row['side']:,} x {row['side']:,}" for row in rows)], lines)]
