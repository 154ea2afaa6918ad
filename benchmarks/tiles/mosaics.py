"""Average precision, time and memory: a large picture in tiles, by m2f and by SAHI, against its scenes by themselves.

Each way to cut the picture runs in a process of its own, with the same server, pictures, tiles and requests in flight.
The tiles are compared before anything else.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pycocotools import mask as coco_mask

from m2f.tiles import grid
from m2f_client import Client, Result
from m2f_server import serve

from ..frame import Part, Row, Table, UnavailableError
from .ground import one_ground
from .mosaic import CELL, ROOT, Mosaic, mosaic
from .scores import Found, Outcome, average_precision, outcomes, placed
from .tiff import write_tiff

PICTURES: Mapping[str, Callable[[int], Mosaic]] = {"one ground": one_ground, "mosaic": mosaic}
ALONE, WHOLE, M2F, M2F_WHOLE, SAHI = "scenes by themselves", "resized whole", "m2f", "m2f, and whole", "SAHI"
SAHI_PYTHON = ROOT / ".venv/sahi/bin/python"
SLICES = {"perform_standard_pred": False}
CUTTING: Mapping[str, tuple[str, Mapping[str, Any]]] = {  # module, and arguments beside those that all ways have
    M2F: ("ours", {}),
    M2F_WHOLE: ("ours", {"whole": True}),
    SAHI: ("by_sahi", SLICES),
    "SAHI, NMM": ("by_sahi", {**SLICES, "postprocess_type": "NMM", "force_postprocess_type": True}),
    "SAHI, NMS": ("by_sahi", {**SLICES, "postprocess_type": "NMS", "postprocess_match_metric": "IOU"}),
    "SAHI, and whole": ("by_sahi", {}),
}
WAYS = (ALONE, WHOLE, *CUTTING)
SETTING, OTHERS = (0.25, 0.3), ((0.25, 0.0), (0.5, 0.3))  # overlap, lowest score
WAYS_OF_OTHERS = (ALONE, M2F, SAHI, "SAHI, NMS")
IN_FLIGHT = 8
ROUNDS = 3


@dataclass(frozen=True)
class Stage:
    """A server and a picture.

    Attributes:
        url: address of the server.
        scene: the picture and its objects.
        folder: where files of the ways go.
    """

    url: str
    scene: Mosaic
    folder: Path

    @property
    def side(self) -> int:
        """Height and width of the picture."""
        return CELL * self.scene.side

    @cached_property
    def truth(self) -> list[Found]:
        """The objects of the picture."""
        return [Found(0, it.label, 1.0, placed(it.mask, it.x, it.y, self.side, self.side)) for it in self.scene.things]

    @cached_property
    def file(self) -> Path:
        """The picture as a TIFF whose blocks are as large as a tile."""
        path = self.folder / "picture.tif"
        write_tiff(path, self.side, self.side, [(0, 0, self.scene.pixels)], block=CELL)
        return path


def part(*, quick: bool) -> Part:
    """Return the ways in turn, for each picture, size and setting."""
    sides, rounds = ((4,), 1) if quick else ((4, 16), ROUNDS)
    runs = [(*SETTING, number, way) for number in range(rounds) for way in WAYS]
    runs += [] if quick else [(*setting, 0, way) for setting in OTHERS for way in WAYS_OF_OTHERS]
    return Part(
        name="tiles",
        title="A large picture in tiles",
        about=(
            f"Held-out scenes of the embedded model, {CELL} x {CELL} pixels each, side by side (`mosaic`) or on "
            f"grounds that blend (`one ground`). Tiles have {CELL} pixels, and {IN_FLIGHT} requests are in flight. "
            "SAHI has a model class that sends its slices to the same server; its tiles are the same ones. Each way "
            "has a process of its own, and reads the picture from a TIFF. Memory is the peak above what the process "
            f"has before the call. {_version()}."
        ),
        cells=[
            dict(zip(("picture", "side", "overlap", "threshold", "round", "way"), (picture, side, *run), strict=True))
            for picture in PICTURES
            for side in sides
            for run in runs
        ],
        shared=("picture", "side"),
        stage=staged,
        measure=measured,
        limit_s=600,
        tables=tables,
        draw=draw,
    )


def _version() -> str:
    folders = [str(folder) for folder in SAHI_PYTHON.parents[1].glob("lib/python*/site-packages")]
    return next(
        (f"SAHI {found.version}" for found in distributions(name="sahi", path=folders)), "SAHI is not installed"
    )


@contextmanager
def staged(*, picture: str, side: int) -> Iterator[Stage]:
    """Serve the embedded model, and draw a picture."""
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        TemporaryDirectory(prefix="m2f_benchmark_") as folder,
        serve(model_repository=ROOT / "model_repository", config_name="cpu", **ports) as server,
    ):
        yield Stage(f"grpc://{server.grpc_url}", PICTURES[picture](side), Path(folder))


def measured(stage: Stage, *, overlap: float, threshold: float, way: str, **_: Any) -> list[Row]:
    """Look for the objects in one way, and compare what was found with what is there."""
    boxes = [tile.rect for tile in grid(stage.side, stage.side, tile=CELL, overlap=overlap)]
    if way in CUTTING:
        found, figures = cut(stage, way, [list(box) for box in boxes], overlap=overlap, threshold=threshold)
    else:
        found, figures = uncut(stage, way, threshold)
    seam = stage.scene.at_seams(boxes)
    became = outcomes(stage.truth, found)
    row: Row = {"tiles": len(boxes), "objects": len(seam), "at_seams": int(seam.sum()), "instances": len(found)}
    for name, where in (("seam", seam), ("elsewhere", ~seam)):
        counts = Counter(outcome for outcome, there in zip(became, where, strict=True) if there)
        row |= {f"{name}_{outcome.name.lower()}": counts[outcome] for outcome in Outcome}
    return [{"ap": average_precision(stage.truth, found), **row, **figures}]


def cut(
    stage: Stage, way: str, boxes: Sequence[Sequence[int]], *, overlap: float, threshold: float
) -> tuple[list[Found], Row]:
    """Return what a way finds in tiles, with its time and memory.

    Raises:
        UnavailableError: SAHI is not installed.
        RuntimeError: the process failed.
        ValueError: the way has other tiles.
    """
    module, options = CUTTING[way]
    python = SAHI_PYTHON if module == "by_sahi" else Path(sys.executable)
    if not python.exists():
        raise UnavailableError("SAHI is not installed: make bench-tiles")
    settings = {"tile": CELL, "overlap": overlap, "threshold": threshold, "in_flight": IN_FLIGHT, **options}
    answer = stage.folder / "answer.json"
    command = [python, "-m", f"benchmarks.tiles.{module}", stage.url, stage.file, answer, json.dumps(settings)]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} failed: {done.stderr[-600:]}")
    document = json.loads(answer.read_text())
    if sorted(document["tiles"]) != sorted(map(list, boxes)):
        raise ValueError(f"{way} has other tiles: {len(document['tiles'])} instead of {len(boxes)}")
    figures = document["figures"]
    return [Found(*row) for row in document["found"]], {
        **figures,
        "memory_mb": figures["peak_mb"] - figures["before_mb"],
    }


def uncut(stage: Stage, way: str, threshold: float) -> tuple[list[Found], Row]:
    """Return what is found without tiles: in each scene by itself, or in the whole picture at once."""
    scenes = stage.scene.scenes if way == ALONE else [stage.scene.pixels]
    with Client(stage.url) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
        started = time.perf_counter()
        results = list(pool.map(lambda pixels: client.predict(pixels, score_threshold=threshold), scenes))
        seconds = time.perf_counter() - started
    found = [one for number, result in enumerate(results) for one in _found(stage, number, result)]
    return found, {"seconds": seconds}


def _found(stage: Stage, number: int, result: Result) -> Iterator[Found]:
    y, x = (CELL * place for place in divmod(number, stage.scene.side))
    for label, score, counts in zip(result.labels, result.scores, result.rle, strict=True):
        mask = coco_mask.decode({"size": list(result.size), "counts": counts}).astype(bool)
        yield Found(0, int(label), float(score), placed(mask, x, y, stage.side, stage.side))


FIGURES = {
    "ap": "AP",
    "seam_once": "at seams: once",
    "seam_several_times": "several times",
    "seam_not": "not",
    "elsewhere_once": "elsewhere: once",
    "seconds": "s",
    "cpu_s": "processor s",
    "memory_mb": "memory, MB",
}


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return a table for each picture, size and setting: medians over the rounds."""
    found: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("picture", "side", "overlap", "threshold"))
        found.setdefault(key, {}).setdefault(row["way"], []).append(row)
    return [_table(key, ways) for key, ways in found.items()]


def _table(key: tuple[Any, ...], ways: Mapping[str, Sequence[Row]]) -> Table:
    picture, side, overlap, threshold = key
    first = next(iter(ways.values()))[0]
    lines = [[way, *(_median(measured, name) for name in FIGURES)] for way, measured in ways.items()]
    caption = (
        f"{picture}, {side} x {side} scenes, {first['objects']} objects, {first['at_seams']} of them at seams; "
        f"{first['elsewhere_once'] + first['elsewhere_several_times'] + first['elsewhere_not']} elsewhere; "
        f"{first['tiles']} tiles, overlap {overlap}, lowest score {threshold}:"
    )
    name = f"{picture.replace(' ', '-')}-{side}-{overlap:.0%}-{threshold:.0%}".replace("%", "")
    return Table(name, ["", *FIGURES.values()], lines, caption)


def _median(rows: Sequence[Row], name: str) -> Any:
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return None
    middle = statistics.median(values)
    return f"{middle:.3f}" if name == "ap" else int(middle) if isinstance(values[0], int) else middle


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw AP, time and memory of the ways on the largest picture."""
    side, picture = max(row["side"] for row in rows), rows[0]["picture"]
    overlap, threshold = SETTING
    chosen = {"picture": picture, "side": side, "overlap": overlap, "threshold": threshold}
    ways: dict[str, list[Row]] = {}
    for row in rows:
        if all(row[name] == value for name, value in chosen.items()):
            ways.setdefault(row["way"], []).append(row)
    titles = {"ap": "AP", "seconds": "seconds", "memory_mb": "memory, MB"}
    for axes, (name, title) in zip(figure.subplots(1, 3, sharey=True), titles.items(), strict=True):
        values = [statistics.median(row.get(name) or 0 for row in measured) for measured in ways.values()]
        axes.barh(list(ways), values, color=["C0" if way.startswith("m2f") else "C7" for way in ways])
        axes.set_title(title)
    figure.axes[0].invert_yaxis()
    figure.suptitle(f"{picture}, {side} x {side} scenes, overlap {overlap}, lowest score {threshold}")
