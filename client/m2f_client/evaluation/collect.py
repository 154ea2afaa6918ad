"""Every image of a data set through a server, several in flight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import track

from m2f.contract import STRUCTURED_OUTPUTS
from m2f.errors import M2FError
from m2f_client.client import Client
from m2f_client.client_errors import ModelNotFound, ServerError, ServerUnavailable
from m2f_client.evaluation.categories import Categories
from m2f_client.evaluation.dataset import Image
from m2f_client.pump import in_order
from m2f_client.result import Result

T = TypeVar("T")
Row = dict[str, Any]


@dataclass
class Collected(Generic[T]):
    """What a server said of a data set.

    Attributes:
        answers: by image id.
        failures: by image id, why there is no answer.
    """

    answers: dict[int, T] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


def collect(
    client: Client,
    images: Sequence[Image],
    read: Callable[[Image, Result], T],
    *,
    outputs: Sequence[str],
    parameters: Mapping[str, Any],
    concurrency: int,
) -> Collected[T]:
    """Send every image and keep what `read` makes of the answer; a bar shows it on a terminal (standard error).

    Args:
        client: the server.
        images: what to send.
        read: from image and result to what is kept; called in several threads.
        outputs: what to ask for; `size` must be among it.
        parameters: request parameters.
        concurrency: requests in flight.

    Raises:
        ServerUnavailable, ModelNotFound: the run ends there; the message says how far it came.
        M2FError: not one image worked.
    """

    def ask(image: Image) -> T | M2FError:
        try:
            result = client.predict(image.path, outputs=outputs, **parameters)
            if result.size != image.size:
                raise M2FError(f"the image is {_pixels(result.size)}, its annotations are for {_pixels(image.size)}")
            return read(image, result)
        except M2FError as error:
            return error

    screen = Console(stderr=True)
    answers = in_order(ask, images, concurrency=concurrency, stop=Event())
    shown = track(
        answers, client.url, total=len(images), console=screen, disable=not screen.is_terminal, transient=True
    )
    collected: Collected[T] = Collected()
    for image, answer in zip(images, shown, strict=True):
        if isinstance(answer, ServerUnavailable | ModelNotFound):
            done = len(collected.answers)
            raise type(answer)(f"{answer}; {done} of {len(images)} images were done, nothing is evaluated") from answer
        if isinstance(answer, M2FError):
            collected.failures[image.id] = str(answer)
        else:
            collected.answers[image.id] = answer
    if not collected.answers:
        raise M2FError(f"none of the {len(images)} images worked: {next(iter(collected.failures.values()))}")
    return collected


def instances(
    client: Client,
    images: Sequence[Image],
    categories: Categories,
    *,
    parameters: Mapping[str, Any],
    concurrency: int,
) -> Collected[list[Row]]:
    """Collect the COCO results of each image; classes that the data set does not have are left out.

    Raises:
        M2FError: as `collect`.
    """

    def read(image: Image, result: Result) -> list[Row]:
        rows = []
        labels = range(max(result.labels.tolist(), default=0) + 1)
        for row in result.to_coco(image.id, categories=labels):
            if "segmentation" not in row:
                raise ServerError("the server made no masks; is export_postprocess_mask false?")
            category = categories[row["category_id"]]
            if category is not None:
                rows.append({**row, "category_id": category})
        return rows

    return collect(client, images, read, outputs=STRUCTURED_OUTPUTS, parameters=parameters, concurrency=concurrency)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
