"""Panoptic quality of a server on a data set, and how its segments differ from another server's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from m2f.contract import PANOPTIC_OUTPUTS
from m2f_client.client import Client
from m2f_client.converters.coco import CocoDict
from m2f_client.evaluation import quality
from m2f_client.evaluation.categories import Categories
from m2f_client.evaluation.collect import Collected, Document, Evaluation, collect
from m2f_client.evaluation.dataset import Dataset, DatasetImage
from m2f_client.evaluation.evaluate import differences
from m2f_client.evaluation.fields import InvalidDataset
from m2f_client.result import Result

Counts = Mapping[int, quality.Counts]
"""The segments of one image, by category id."""


@dataclass(frozen=True)
class EvaluatedPanoptic:
    """The panoptic segmentation of one server, scored.

    Attributes:
        evaluation: what was evaluated.
        document: the report as JSON has it.
        counts: segments by image id and category id.
    """

    evaluation: Evaluation
    document: Document
    counts: Mapping[int, Counts]

    def against_server(self, client: Client) -> Document:
        """Compare with the segments that another server finds in the same images; errors as `evaluate_instances`."""
        evaluation = self.evaluation
        categories = evaluation.categories(client)
        collected = _segments(client, evaluation, categories)
        both = sorted(self.counts.keys() & collected.answers.keys())
        mine, theirs = ({i: counts[i] for i in both} for counts in (self.counts, collected.answers))
        before, after = (_quality(evaluation.dataset, counts)["all"] for counts in (mine, theirs))
        names = {image.id: str(image.path) for image in evaluation.dataset.images}
        return {
            "name": client.url,
            "model": client.model,
            "images": len(both),
            "differ": [names[i] for i in names if i in mine and _numbers(mine[i]) != _numbers(theirs[i])],
            "before": before,
            "after": after,
            "difference": differences(before, after, tuple(before)),
            **evaluation.troubles(collected, categories),
        }


def evaluate_panoptic(client: Client, evaluation: Evaluation) -> EvaluatedPanoptic:
    """Score the panoptic segmentation of a server: PQ, SQ and RQ over the images that worked.

    Raises:
        M2FError: as `evaluate_instances`.
    """
    categories = evaluation.categories(client)
    collected = _segments(client, evaluation, categories)
    document = evaluation.document(client, collected, categories)
    document["panoptic"] = _quality(evaluation.dataset, collected.answers)
    return EvaluatedPanoptic(evaluation, document, collected.answers)


def _numbers(counts: Counts) -> dict[int, tuple[int, int, int]]:
    """Return how many segments of each class are found, false and missed."""
    return {category: (n.found, n.false, n.missed) for category, n in counts.items()}


def _segments(client: Client, evaluation: Evaluation, categories: Categories) -> Collected[dict[int, quality.Counts]]:
    """Count the segments of all images, by category id."""
    dataset = evaluation.dataset
    segments: dict[int, list[CocoDict]] = {image.id: [] for image in dataset.images}
    for segment in dataset.annotations:
        segments[segment["image_id"]].append(segment)

    def read(image: DatasetImage, result: Result) -> dict[int, quality.Counts]:
        found = [{"id": s["id"], "category_id": categories[s["category_id"]]} for s in result.segments]
        truth = quality.read_ids(dataset.maps[image.id], image.size)
        _check_ids(dataset, image, truth, {segment["id"] for segment in segments[image.id]})
        known = [segment for segment in found if segment["category_id"] is not None]
        return quality.count_image(truth, segments[image.id], result.panoptic, known)

    return collect(client, evaluation, read, outputs=(*PANOPTIC_OUTPUTS, "size"))


def _check_ids(dataset: Dataset, image: DatasetImage, truth: quality.Ids, listed: set[int]) -> None:
    """Refuse a PNG and `segments_info` that do not belong together."""
    drawn = set(np.unique(truth).tolist()) - {quality.VOID}
    for name, ids in (("no pixel of", listed - drawn), ("pixels of", drawn - listed)):
        if ids:
            raise InvalidDataset(
                f"{dataset.maps[image.id]} has {name} segment {min(ids)}; allowed: the ids in segments_info of image "
                f"{image.id} in {dataset.path}, and 0 for void"
            )


def _quality(dataset: Dataset, answers: Mapping[int, Counts]) -> Document:
    counts = quality.total(answers.values())
    classes = [(c, quality.quality(counts.get(c["id"]))) for c in dataset.categories]
    objects = dataset.objects(answers)
    return {
        "all": quality.mean(one for _, one in classes).to_dict(),
        "things": quality.mean(one for c, one in classes if c["isthing"]).to_dict(),
        "stuff": quality.mean(one for c, one in classes if not c["isthing"]).to_dict(),
        "per_class": [{"name": c["name"], "objects": objects[c["id"]], **one.to_dict()} for c, one in classes],
    }
