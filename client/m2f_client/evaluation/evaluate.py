"""Mask and box AP of a server on a data set, and how its instances differ from another server's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m2f.agreement import Found, compare
from m2f_client.client import Client
from m2f_client.converters.coco import CocoDict
from m2f_client.evaluation.collect import Document, Evaluation, instances
from m2f_client.evaluation.dataset import Dataset
from m2f_client.evaluation.fields import InvalidDataset, read_json, rows
from m2f_client.evaluation.precision import COCO_MOST, FIGURES, Precision, average_precision
from m2f_client.evaluation.segmentation import checked_rle

Rows = Mapping[int, Sequence[CocoDict]]
"""COCO results by image id."""


@dataclass(frozen=True)
class Evaluated:
    """The instances of one server, scored.

    Attributes:
        evaluation: what was evaluated.
        document: the report as JSON has it.
        masks: mask AP with its curves.
        rows: COCO results by image id.
    """

    evaluation: Evaluation
    document: Document
    masks: Precision
    rows: Rows

    def against_server(self, client: Client) -> Document:
        """Compare with the instances that another server finds in the same images; errors as `evaluate_instances`."""
        categories = self.evaluation.categories(client)
        collected = instances(client, self.evaluation, categories)
        return {
            **self._against(client.url, collected.answers),
            "model": client.model,
            **self.evaluation.troubles(collected, categories),
        }

    def against_file(self, path: Path) -> Document:
        """Compare with saved COCO results.

        Raises:
            InvalidDataset: the file cannot be read, or its results belong to another data set.
        """
        rows = read_results(path, self.evaluation.dataset)
        return {**self._against(str(path), rows), "warnings": [], "failures": []}

    def _against(self, name: str, other: Rows) -> Document:
        dataset = self.evaluation.dataset
        both = sorted(self.rows.keys() & other.keys())
        mine, theirs = ({i: rows[i] for i in both} for rows in (self.rows, other))
        before, after = (_score(self.evaluation, rows, "segm").figures for rows in (mine, theirs))
        sizes = {image.id: image.size for image in dataset.images}
        names = {image.id: str(image.path) for image in dataset.images}
        agreement = compare(*({i: _found(rows[i], sizes[i]) for i in both} for rows in (mine, theirs)))
        return {
            **agreement.to_dict(),
            "name": name,
            "images": len(both),
            "differ": [names[image_id] for image_id in agreement.differ],
            "before": before,
            "after": after,
            "difference": differences(before, after, FIGURES),
        }


def evaluate_instances(client: Client, evaluation: Evaluation) -> Evaluated:
    """Score the instances of a server: mask AP and box AP over the images that worked.

    Raises:
        M2FError: no class of the model is in the data set, the server is gone, or every image failed.
    """
    categories = evaluation.categories(client)
    collected = instances(client, evaluation, categories)
    masks, boxes = (_score(evaluation, collected.answers, kind) for kind in ("segm", "bbox"))
    document = evaluation.document(client, collected, categories)
    document |= {"segm": masks.to_dict(), "bbox": boxes.to_dict()}
    return Evaluated(evaluation, document, masks, collected.answers)


def differences(
    before: Mapping[str, float | None], after: Mapping[str, float | None], names: Sequence[str]
) -> dict[str, float | None]:
    """Return `after - before` of each figure; None if either is None."""
    pairs = {name: (before[name], after[name]) for name in names}
    return {name: None if a is None or b is None else b - a for name, (a, b) in pairs.items()}


def read_results(path: Path, dataset: Dataset) -> dict[int, list[CocoDict]]:
    """Return saved COCO results with masks by image id, with an empty list for images without results.

    Raises:
        InvalidDataset: the file cannot be read, or its results belong to another data set.
    """
    values = read_json(path)
    if not isinstance(values, list):
        raise InvalidDataset(f"{path} is not a list of COCO results, such as the results.json of --out DIR")
    sizes, known = {image.id: image.size for image in dataset.images}, {c["id"] for c in dataset.categories}
    results: dict[int, list[CocoDict]] = {image_id: [] for image_id in sizes}
    for row in rows(str(path), values):
        image_id, category_id = row.whole("image_id"), row.whole("category_id")
        for name, number, ids in (("image_id", image_id, sizes), ("category_id", category_id, known)):
            if number not in ids:
                raise row.error(f" has the {name} {number}, which {dataset.path} does not have")
        mask = checked_rle(row.part("segmentation"), sizes[image_id], compressed=True)
        results[image_id].append(
            {"image_id": image_id, "category_id": category_id, "score": row.number("score", 0, 1), "segmentation": mask}
        )
    return results


def _score(evaluation: Evaluation, rows: Rows, kind: Literal["segm", "bbox"]) -> Precision:
    """Score the best 100 instances of each image, as COCO does; in tiles all of them."""
    every = max((len(found) for found in rows.values()), default=0)
    most = COCO_MOST if evaluation.tiling is None else max(COCO_MOST, every)
    found = [row for image_id in rows for row in rows[image_id]]
    return average_precision(evaluation.dataset, found, list(rows), kind, most=most)


def _found(rows: Sequence[CocoDict], size: tuple[int, int]) -> Found:
    """Return the COCO results of one image as `m2f.agreement` compares them."""
    return Found(
        [row["score"] for row in rows],
        [row["category_id"] for row in rows],
        [row["segmentation"]["counts"].encode() for row in rows],
        size,
    )
