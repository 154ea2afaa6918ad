"""Every image of a data set through a server, with several requests in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import track

from m2f.contract import STRUCTURED_OUTPUTS
from m2f.errors import M2FError
from m2f_client.client import Client
from m2f_client.client_errors import ModelNotFound, ServerError, ServerUnavailable
from m2f_client.converters.coco import CocoDict
from m2f_client.evaluation.categories import Categories, by_index, by_name
from m2f_client.evaluation.dataset import Dataset, DatasetImage
from m2f_client.evaluation.segmentation import is_compressed_rle
from m2f_client.pump import in_order
from m2f_client.result import Result
from m2f_client.tiled import Tiling

T = TypeVar("T")
Document = dict[str, Any]
"""A report, or a part of it, as JSON has it."""


@dataclass
class Collected(Generic[T]):
    """The answers of a server about a data set.

    Attributes:
        answers: by image id.
        failures: by image id, why there is no answer.
    """

    answers: dict[int, T] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A data set and how to send it to a server.

    Attributes:
        dataset: the data set.
        parameters: request parameters.
        by_index: whether the model's classes are the categories in the order of their ids; else they are matched by
            name.
        concurrency: number of requests in flight.
        tiling: how larger pictures are cut; None: each picture is one request.
    """

    dataset: Dataset
    parameters: Mapping[str, Any]
    by_index: bool
    concurrency: int
    tiling: Tiling | None = None

    def predict(self, client: Client, image: DatasetImage, outputs: Sequence[str]) -> Result:
        """Return a server's answer about an image; errors as `Client.predict`."""
        if self.tiling is None:
            return client.predict(image.path, outputs=outputs, **self.parameters)
        return client.predict_tiled(
            image.path,
            tile=self.tiling.tile,
            overlap=self.tiling.overlap,
            whole=self.tiling.whole,
            concurrency=self.concurrency // self.at_once,
            outputs=outputs,
            **self.parameters,
        )

    @property
    def at_once(self) -> int:
        """Number of images in work at once; of images in tiles two, so that one begins while another one ends."""
        return self.concurrency if self.tiling is None else min(2, self.concurrency, len(self.dataset.images))

    def categories(self, client: Client) -> Categories:
        """Return the category of each class of a server's model."""
        return (by_index if self.by_index else by_name)(client.class_names, self.dataset)

    def document(self, client: Client, collected: Collected[Any], categories: Categories) -> Document:
        """Return what every report has: data set, server, model, parameters, number of images, failures."""
        return {
            "dataset": str(self.dataset.path),
            "server": client.url,
            "model": client.model,
            "parameters": dict(self.parameters),
            **({} if self.tiling is None else {"tiling": self.tiling.members()}),
            "images": len(collected.answers),
            "objects": sum(self.dataset.objects(collected.answers).values()),
            **self.troubles(collected, categories),
        }

    def troubles(self, collected: Collected[Any], categories: Categories) -> Document:
        """Return the images that failed, and the classes and categories without a counterpart."""
        names = {image.id: str(image.path) for image in self.dataset.images}
        failures = [{"file_name": names[i], "reason": reason} for i, reason in collected.failures.items()]
        return {"warnings": categories.warnings(), "failures": failures}


def collect(
    client: Client, evaluation: Evaluation, read: Callable[[DatasetImage, Result], T], *, outputs: Sequence[str]
) -> Collected[T]:
    """Send every image and keep `read(image, result)`. A terminal on standard error shows a progress bar.

    Args:
        client: the server.
        evaluation: what to send.
        read: makes the answer to keep; called in several threads.
        outputs: outputs to request, `size` among them.

    Raises:
        ServerUnavailable, ModelNotFound: raised at the first image that meets it; the message says how many were done.
        M2FError: every image failed.
    """

    def ask(image: DatasetImage) -> T | M2FError:
        try:
            result = evaluation.predict(client, image, outputs)
            if result.size != image.size:
                raise M2FError(f"the image is {_pixels(result.size)}, its annotations are for {_pixels(image.size)}")
            return read(image, result)
        except M2FError as error:
            return error

    images = evaluation.dataset.images
    collected: Collected[T] = Collected()
    with in_order(ask, images, concurrency=evaluation.at_once, stop=Event()) as answers:
        for image, answer in zip(images, _shown(answers, client.url, len(images)), strict=True):
            if isinstance(answer, ServerUnavailable | ModelNotFound):
                done = f"{len(collected.answers)} of {len(images)} images were done, nothing is evaluated"
                raise type(answer)(f"{answer}; {done}") from answer
            if isinstance(answer, M2FError):
                collected.failures[image.id] = str(answer)
            else:
                collected.answers[image.id] = answer
    if not collected.answers:
        raise M2FError(f"none of the {len(images)} images worked: {next(iter(collected.failures.values()))}")
    return collected


def instances(client: Client, evaluation: Evaluation, categories: Categories) -> Collected[list[CocoDict]]:
    """Collect the COCO results of each image, without those of classes that the data set does not have.

    Raises:
        M2FError: as `collect`.
    """

    def read(image: DatasetImage, result: Result) -> list[CocoDict]:
        rows = []
        if (result.labels < 0).any():
            raise ServerError(f"'labels' from the server go down to {result.labels.min()}; possible are 0 and above")
        labels = range(max(result.labels.tolist(), default=0) + 1)
        for row in result.to_coco(image.id, categories=labels):
            if "segmentation" not in row:
                raise ServerError("the server made no masks; is export_postprocess_mask false?")
            if not is_compressed_rle(row["segmentation"]["counts"], image.size):
                raise ServerError("'rle' from the server is not the RLE of masks of its image")
            category = categories[row["category_id"]]
            if category is not None:
                rows.append({**row, "category_id": category})
        return rows

    return collect(client, evaluation, read, outputs=STRUCTURED_OUTPUTS)


def _shown(answers: Iterable[T], title: str, total: int) -> Iterable[T]:
    screen = Console(stderr=True)
    return track(answers, title, total=total, console=screen, disable=not screen.is_terminal, transient=True)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
