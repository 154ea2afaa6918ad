"""The two ends of a call: checks and builds a request, and splits an answer into `Result`s."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum

import numpy as np

from m2f.contract import CLASS_NAMES
from m2f.errors import shown
from m2f_client.answer import LABEL_MAPS, ROW_OUTPUTS, check_size, readable
from m2f_client.client_errors import ClientError, InvalidRequest, ServerError
from m2f_client.images import ImageSource, image_tensor, pixels_of_png
from m2f_client.result import Result
from m2f_client.transports.protocol import Array, Parameter, Request

_ANY_PICTURE = np.zeros((16, 16, 3), np.uint8)
_INT64 = range(-(2**63), 2**63)


class Default(Enum):
    """Stands for the timeout of the client, in a request without a timeout of its own."""

    CLIENT = "the client's"


def build_request(
    images: Sequence[ImageSource],
    *,
    model: str,
    outputs: Sequence[str],
    timeout: float | None,
    parameters: Mapping[str, Parameter | None],
) -> Request:
    """Return the request for 1 to 8 images. Reads files and compresses pixels.

    Raises:
        InvalidRequest, UnreadableImage: as `Client.predict_batch`.
    """
    _check_text("the model's name", model)
    if not model:
        raise InvalidRequest("the model's name is empty; m2f models lists the models of a server")
    return Request(
        model=model,
        inputs={"image": image_tensor(images, timeout=timeout)},
        outputs=needed_outputs(outputs, batched=len(images) > 1),
        parameters=checked_parameters(parameters),
        timeout=timeout,
    )


@contextmanager
def identified(request: Request) -> Iterator[None]:
    """Set `request_id` of a `ClientError` that the block raises."""
    try:
        yield
    except ClientError as error:
        error.request_id = request.id
        raise


def read_answer(answer: Mapping[str, Array], request: Request) -> list[Result]:
    """Return the result of each image of a request.

    Raises:
        ServerError: the answer cannot be read.
    """
    with readable():
        images = request.inputs["image"][:, 0]
        results = [Result.from_batch(answer, index) for index in range(len(images))]
        for image, result in zip(images, results, strict=True):
            sent = pixels_of_png(image)
            if sent is not None and "size" in result.outputs:
                check_size(*result.size, max_pixels=sent)
    return results


def checked_timeout(timeout: float | None) -> float | None:
    """Return the timeout.

    Raises:
        InvalidRequest: the timeout is neither a number of seconds above 0 nor None.
    """
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (number and timeout > 0):
        raise InvalidRequest(f"timeout must be seconds > 0, or None to wait for ever; got {timeout!r}")
    return timeout


def effective_timeout(timeout: float | Default | None, of_client: float | None) -> float | None:
    """Return the timeout of a request, checked, or the client's if the request has none."""
    return of_client if isinstance(timeout, Default) else checked_timeout(timeout)


def checked_concurrency(concurrency: int) -> int:
    """Return the number of requests in flight.

    Raises:
        InvalidRequest: the number is not a whole number of 1 or more.
    """
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
        raise InvalidRequest(f"concurrency must be a whole number, 1 or more; got {concurrency!r}")
    return concurrency


def needed_outputs(outputs: Sequence[str], *, batched: bool) -> tuple[str, ...]:
    """Return the outputs to ask the server for: `outputs`, and what is needed to read them.

    A mask is decoded with `size`. The padding of a batch is cut with `num_instances`.
    """
    names = list(dict.fromkeys(outputs))
    if not names:
        raise InvalidRequest("no outputs asked for")
    for name in names:
        _check_text("the name of an output", name)
    if batched and any(name in ROW_OUTPUTS for name in names):
        names.append("num_instances")
    padded = "masks" in names or any(name in LABEL_MAPS for name in names)
    if "rle" in names or "packed_masks" in names or (batched and padded):
        names.append("size")
    return tuple(dict.fromkeys(names))


def checked_parameters(parameters: Mapping[str, Parameter | None]) -> dict[str, Parameter]:
    """Return the request parameters without the values that are None.

    Raises:
        InvalidRequest: a value is not str, int (64 bit), float or bool.
    """
    checked: dict[str, Parameter] = {}
    for name, value in parameters.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if plain is None:
            continue
        if not isinstance(plain, str | int | float):
            raise InvalidRequest(f"parameter '{name}' must be str, int, float or bool; got {type(value).__name__}")
        if isinstance(plain, int) and plain not in _INT64:
            raise InvalidRequest(f"parameter '{name}' must fit 64 bits; got {plain}")
        for text in (name, plain) if isinstance(plain, str) else (name,):
            _check_text(f"parameter {name!r}", text)
        checked[name] = plain
    return checked


def class_names_request(*, model: str, timeout: float | None) -> Request:
    """Return the request for the class names of a model. They come with the answer to any picture.

    Raises:
        InvalidRequest: the model's name is empty, or text that no protocol can carry.
    """
    return build_request([_ANY_PICTURE], model=model, outputs=[CLASS_NAMES], timeout=timeout, parameters={})


def class_names_of(answer: Mapping[str, Array]) -> tuple[str, ...] | None:
    """Return the class names in an answer; None if the list is empty.

    Raises:
        ServerError: the output is not a JSON list of strings.
    """
    with readable():
        text = answer[CLASS_NAMES].reshape(-1)[0]
        try:
            names = json.loads(text)
        except (RecursionError, ValueError):
            names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ServerError(f"output {CLASS_NAMES} must be a JSON list of strings; got {shown(text)}")
    return tuple(names) or None


def _check_text(what: str, text: object) -> None:
    """Refuse text that neither protocol can carry, such as half a surrogate pair."""
    try:
        if isinstance(text, str):
            text.encode()
            return
    except UnicodeEncodeError:
        pass
    raise InvalidRequest(f"{what} must be text that UTF-8 can carry; got {text!r}")
