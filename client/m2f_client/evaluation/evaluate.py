"""From a data set and a server to figures: mask and box AP, panoptic quality, and what differs from another server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from faster_coco_eval import mask as coco_mask

from m2f.agreement import compare
from m2f.contract import PANOPTIC_OUTPUTS
from m2f.rle import decode_edges
from m2f_client.client import Client
from m2f_client.evaluation import quality
from m2f_client.evaluation.categories import Categories, by_index, by_name
from m2f_client.evaluation.collect import Collected, Row, collect, instances
from m2f_client.evaluation.dataset import Dataset, Image, InvalidDataset, check_rows
from m2f_client.evaluation.precision import FIGURES, Precision, average_precision
from m2f_client.result import Result
from m2f_client.transports.protocol import Parameter

Document = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """How to send a data set.

    Attributes:
        dataset: what to send.
        parameters: request parameters.
        by_index: the model's classes are in the order of the categories; else they are matched by name.
        concurrency: requests in flight.
    """

    dataset: Dataset
    parameters: Mapping[str, Parameter]
    by_index: bool
    concurrency: int

    def categories(self, client: Client) -> Categories:
        """Return which category each class of a server's model is."""
        return by_index(self.dataset) if self.by_index else by_name(client.class_names, self.dataset)

    def instances(self, client: Client, categories: Categories) -> Collected[list[Row]]:
        """Collect the instances of all images."""
        return instances(
            client, self.dataset.images, categories, parameters=self.parameters, concurrency=self.concurrency
        )

    def document(self, client: Client, collected: Collected[Any], categories: Categories) -> Document:
        """Return what every report says: of what, by whom, and what went wrong."""
        return {
            "dataset": str(self.dataset.path),
            "server": client.url,
            "parameters": dict(self.parameters),
            "images": len(collected.answers),
            "objects": sum(self.dataset.objects(collected.answers).values()),
            **self.troubles(collected, categories),
        }

    def troubles(self, collected: Collected[Any], categories: Categories) -> Document:
        """Return what went wrong, and what does not match."""
        names = {image.id: str(image.path) for image in self.dataset.images}
        failures = [{"file_name": names[i], "reason": reason} for i, reason in collected.failures.items()]
        return {"warnings": categories.warnings(), "failures": failures}


@dataclass(frozen=True)
class Evaluated:
    """Instances of one server, scored.

    Attributes:
        document: the report as JSON has it.
        masks: mask AP with its curves.
        rows: COCO results by image id.
    """

    document: Document
    masks: Precision
    rows: dict[int, list[Row]]


def evaluate_instances(client: Client, run: Run) -> Evaluated:
    """Score the instances of a server: mask AP and box AP of the images that worked.

    Raises:
        M2FError: no class is in the data set, the server is gone, or no image worked.
    """
    categories = run.categories(client)
    collected = run.instances(client, categories)
    masks, boxes = (_score(run.dataset, collected.answers, kind) for kind in ("segm", "bbox"))
    document = run.document(client, collected, categories)
    return Evaluated({**document, "segm": masks.to_dict(), "bbox": boxes.to_dict()}, masks, collected.answers)


def against_server(evaluated: Evaluated, client: Client, run: Run) -> Document:
    """Compare with the instances that another server finds in the same images; errors as `evaluate_instances`."""
    categories = run.categories(client)
    collected = run.instances(client, categories)
    compared = _against(client.url, evaluated, collected.answers, run.dataset)
    return {**compared, **run.troubles(collected, categories)}


def against_file(evaluated: Evaluated, path: Path, dataset: Dataset) -> Document:
    """Compare with saved COCO results.

    Raises:
        InvalidDataset: they cannot be read, or are not of this data set.
    """
    compared = _against(str(path), evaluated, read_results(path, dataset), dataset)
    return {**compared, "warnings": [], "failures": []}


def read_results(path: Path, dataset: Dataset) -> dict[int, list[Row]]:
    """Return saved COCO results with masks by image id, an empty list where an image has none.

    Raises:
        InvalidDataset: as `against_file`.
    """
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidDataset(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidDataset(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise InvalidDataset(f"{path} is not a list of COCO results, as --out DIR leaves in results.json")
    check_rows(str(path), rows, {"image_id": int, "category_id": int, "score": (int, float), "segmentation": dict})
    sizes = {image.id: image.size for image in dataset.images}
    results: dict[int, list[Row]] = {image_id: [] for image_id in sizes}
    for index, row in enumerate(rows):
        if row["image_id"] not in sizes:
            raise InvalidDataset(f"{path}[{index}] is of image {row['image_id']}, which {dataset.path} does not have")
        if tuple(row["segmentation"].get("size", ())) != sizes[row["image_id"]]:
            raise InvalidDataset(f"{path}[{index}] has a mask of another size than its image in {dataset.path}")
        try:
            decode_edges(row["segmentation"]["counts"].encode(), *sizes[row["image_id"]])
            results[row["image_id"]].append({"bbox": coco_mask.toBbox(row["segmentation"]).tolist(), **row})
        except (AttributeError, KeyError, ValueError) as error:
            raise InvalidDataset(f"{path}[{index}] has a segmentation that is no compressed RLE") from error
    return results


@dataclass(frozen=True)
class EvaluatedPanoptic:
    """The panoptic segmentation of one server, scored.

    Attributes:
        document: the report as JSON has it.
        counts: segments by image id and category id.
    """

    document: Document
    counts: dict[int, dict[int, quality.Counts]]


def evaluate_panoptic(client: Client, run: Run) -> EvaluatedPanoptic:
    """Score the panoptic segmentation of a server: PQ, SQ and RQ of the images that worked.

    Raises:
        M2FError: as `evaluate_instances`.
    """
    categories = run.categories(client)
    collected = _segments(client, run, categories)
    document = run.document(client, collected, categories)
    return EvaluatedPanoptic({**document, "panoptic": _quality(run.dataset, collected.answers)}, collected.answers)


def panoptic_against_server(evaluated: EvaluatedPanoptic, client: Client, run: Run) -> Document:
    """Compare with the segments that another server finds in the same images; errors as `evaluate_instances`."""
    categories = run.categories(client)
    collected = _segments(client, run, categories)
    both = sorted(evaluated.counts.keys() & collected.answers.keys())
    mine, theirs = ({i: counts[i] for i in both} for counts in (evaluated.counts, collected.answers))
    first, second = (_quality(run.dataset, counts)["all"] for counts in (mine, theirs))
    differ = [image for image in run.dataset.images if image.id in mine and not _same(mine[image.id], theirs[image.id])]
    return {
        "name": client.url,
        "images": len(both),
        "differ": [str(image.path) for image in differ],
        "before": first,
        "after": second,
        "difference": {figure: _minus(second[figure], first[figure]) for figure in first},
        **run.troubles(collected, categories),
    }


def _same(counts: Mapping[int, quality.Counts], others: Mapping[int, quality.Counts]) -> bool:
    """Tell whether as many segments of each class are found, false and missed."""
    first, second = ({c: (n.found, n.false, n.missed) for c, n in one.items()} for one in (counts, others))
    return first == second


def _segments(client: Client, run: Run, categories: Categories) -> Collected[dict[int, quality.Counts]]:
    """Count the segments of all images, by category id."""
    segments: dict[int, list[Row]] = {image.id: [] for image in run.dataset.images}
    for segment in run.dataset.annotations:
        segments[segment["image_id"]].append(segment)

    def read(image: Image, result: Result) -> dict[int, quality.Counts]:
        found = [{"id": s["id"], "category_id": categories[s["category_id"]]} for s in result.segments]
        truth = quality.read_ids(run.dataset.maps[image.id])
        if truth.shape != image.size:
            raise InvalidDataset(f"{run.dataset.maps[image.id]} is not of the size of its image")
        known = [segment for segment in found if segment["category_id"] is not None]
        return quality.count_image(truth, segments[image.id], result.panoptic, known)

    return collect(
        client, run.dataset.images, read, outputs=(*PANOPTIC_OUTPUTS, "size"), parameters=run.parameters,
        concurrency=run.concurrency,
    )  # fmt: skip


def _quality(dataset: Dataset, answers: Mapping[int, Mapping[int, quality.Counts]]) -> Document:
    counts = quality.total(answers.values())
    classes = [(c, quality.quality(counts.get(c["id"]))) for c in dataset.categories]
    objects = dataset.objects(answers)
    return {
        "all": quality.mean(one for _, one in classes).to_dict(),
        "things": quality.mean(one for c, one in classes if c["isthing"]).to_dict(),
        "stuff": quality.mean(one for c, one in classes if not c["isthing"]).to_dict(),
        "per_class": [{"name": c["name"], "objects": objects[c["id"]], **one.to_dict()} for c, one in classes],
    }


def _score(dataset: Dataset, rows: Mapping[int, Sequence[Row]], kind: Any) -> Precision:
    return average_precision(dataset, [row for image_id in rows for row in rows[image_id]], list(rows), kind)


def _against(name: str, evaluated: Evaluated, other: Mapping[int, Sequence[Row]], dataset: Dataset) -> Document:
    both = evaluated.rows.keys() & other.keys()
    mine, theirs = ({i: rows[i] for i in sorted(both)} for rows in (evaluated.rows, other))
    first, second = _score(dataset, mine, "segm").figures, _score(dataset, theirs, "segm").figures
    sizes = {image.id: image.size for image in dataset.images}
    agreement = compare(*({i: _found(rows[i], sizes[i]) for i in rows} for rows in (mine, theirs))).to_dict()
    names = {image.id: str(image.path) for image in dataset.images}
    return {
        **agreement,
        "name": name,
        "images": len(both),
        "differ": [names[image_id] for image_id in agreement["differ"]],
        "before": first,
        "after": second,
        "difference": {figure: _minus(second[figure], first[figure]) for figure in FIGURES},
    }


class _Found(NamedTuple):
    scores: list[float]
    labels: list[int]
    rle: list[bytes]
    size_hw: tuple[int, int]


def _found(rows: Sequence[Row], size: tuple[int, int]) -> _Found:
    """Return COCO results of one image as `m2f.agreement` compares them."""
    return _Found(
        [row["score"] for row in rows],
        [row["category_id"] for row in rows],
        [row["segmentation"]["counts"].encode() for row in rows],
        size,
    )


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
