"""Tables and picture of the peers."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from typing import Any

from benchmarks.frame import Row, Table

from .catalog import BARE, BARE_OPENVINO, EMBEDDED, M2F, M2F_CLIENT, R50
from .material import PYTHON

ABOUT = (
    "From the encoded picture to scores, labels, boxes and RLE at the client, which shares the cores with the "
    "service. Each peer has the settings that its documentation recommends, and at each number of requests in "
    "flight the table shows its best one; the CSV has all. The scripts, Triton's models and the bare engines have "
    "m2f's own graph for nothing, and one script has the graph as PyTorch exports it. Medians of interleaved "
    "rounds. Before it is timed, each service finds what mmdetection finds by itself on the same pictures: the same "
    "classes, scores to 1e-3, masks to an IoU of 0.98. Hugging Face serves a model of its own kind, of the same "
    "sizes, and is compared with itself. The R50 has random weights: no peer finds an instance, and nearly all of "
    "the time is the network's."
)
NAMES = {EMBEDDED: "embedded", R50: "r50"}
SHOWN = (
    "fastapi", "uvicorn", "litserve", "onnxruntime", "openvino", "opencv-python-headless", "pycocotools", "numpy",
    "torch", "mmdet", "transformers",
)  # fmt: skip
Figures = dict[str, float]
Best = dict[tuple[str, str, int], Figures]  # of (model, peer, in flight): medians over the rounds


def best(rows: Sequence[Row]) -> Best:
    """Return the figures of each peer's best setting, by images a second, at each number in flight."""
    rounds: dict[tuple[str, str, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        rounds[row["model"], row["peer"], row["in_flight"]][row["setting"]].append(row)
    return {
        key: max((_medians(measured) for measured in settings.values()), key=lambda figures: figures["images_s"])
        for key, settings in rounds.items()
    }


def _medians(rows: Sequence[Row]) -> Figures:
    names = ("images_s", "p50_ms", "p99_ms", "cpu_ms", "memory_mb", "bytes_answered")
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    medians = {name: statistics.median(found) for name, found in values.items() if found}
    rates = values["images_s"]
    return {**medians, "spread": (max(rates) - min(rates)) / medians["images_s"]}


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return the tables of each model that has been measured."""
    found, made = best(rows), []
    for model, name in NAMES.items():
        peers = list(dict.fromkeys(peer for its, peer, _ in found if its == model))
        in_flight = sorted({number for its, _, number in found if its == model})
        if peers:
            made += list(_model_tables(found, model, name, peers, in_flight))
    return [*made, _equality(rows), _versions()]


def _model_tables(
    found: Best, model: str, name: str, peers: Sequence[str], in_flight: Sequence[int]
) -> Iterator[Table]:
    def line(peer: str, figure: str) -> list[Any]:
        return [peer, *((found.get((model, peer, number)) or {}).get(figure) for number in in_flight)]

    heads = ["", *map(str, in_flight)]
    yield Table(
        name, heads, [line(peer, "images_s") for peer in peers], f"{model} model: images/s by requests in flight."
    )
    ratios = [[peer, *_ratios(found, model, peer, in_flight)] for peer in peers if peer not in (M2F, M2F_CLIENT)]
    yield Table(f"{name}-ratios", heads, ratios, "How many times as many images/s m2f gives.")
    wide = ["", *(f"p50 at {number}" for number in in_flight), *(f"p99 at {number}" for number in in_flight)]
    times = [[*line(peer, "p50_ms"), *line(peer, "p99_ms")[1:]] for peer in peers]
    yield Table(f"{name}-latency", wide, times, "Milliseconds.")
    busy = in_flight[-2] if len(in_flight) > 2 else in_flight[-1]
    figures = ("cpu_ms", "memory_mb", "bytes_answered", "spread")
    costs = [[peer, *((found.get((model, peer, busy)) or {}).get(figure) for figure in figures)] for peer in peers]
    columns = ["", "processor ms an image", "memory MB", "bytes an answer", "spread of images/s"]
    caption = (
        f"At {busy} in flight: all processes of the service, without the client; memory is the proportional set size."
    )
    yield Table(f"{name}-costs", columns, [one for one in costs if any(one[1:])], caption)


def _ratios(found: Best, model: str, peer: str, in_flight: Sequence[int]) -> Iterator[float | None]:
    for number in in_flight:
        ours, theirs = found.get((model, M2F, number)), found.get((model, peer, number))
        yield ours["images_s"] / theirs["images_s"] if ours and theirs else None


def _equality(rows: Sequence[Row]) -> Table:
    columns = ("instances", "at_threshold", "score_difference", "least_iou", "same_masks")
    compared = {(row["model"], row["peer"], row["setting"]): row for row in rows if row.get("instances") is not None}
    lines = [[*key, *(row[column] for column in columns)] for key, row in compared.items()]
    heads = ["model", "peer", "setting", *(column.replace("_", " ") for column in columns)]
    return Table("equality", heads, lines, "How near each service's answers are to mmdetection's.")


def _versions() -> Table:
    """Return the versions in the peers' environment; the facts of the machine hold those of m2f's."""
    folders = [str(folder) for folder in PYTHON.parents[1].glob("lib/python*/site-packages")]
    there = {found.name.lower(): found.version for found in distributions(path=folders)}
    return Table("versions", ["of the peers", ""], [[name, there[name]] for name in SHOWN if name in there])


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw images/s and p99 of the embedded model over the requests in flight."""
    found = {key[1:]: figures for key, figures in best(rows).items() if key[0] == EMBEDDED}
    peers = [peer for peer in dict.fromkeys(peer for peer, _ in found) if peer not in (BARE, BARE_OPENVINO)]
    left, right = figure.subplots(1, 2)
    for place, peer in enumerate(peers):
        numbers = sorted(number for its, number in found if its == peer)
        style = {"linewidth": 2.5 if peer in (M2F, M2F_CLIENT) else 1.2, "marker": "o", "label": peer}
        style["color"] = f"C{place}" if place < 10 else "black"  # ten colours repeat
        left.plot(numbers, [found[peer, number]["images_s"] for number in numbers], **style)
        right.plot(numbers, [found[peer, number]["p99_ms"] for number in numbers], **style)
    left.set_ylim(0)
    right.set_yscale("log")
    for axes, name in ((left, "images/s"), (right, "p99, ms")):
        axes.set(xlabel="requests in flight", ylabel=name, xscale="log")
        axes.set_xticks(numbers, map(str, numbers))
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
