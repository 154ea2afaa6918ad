"""The client: images in, `Result`s out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from m2f.contract import PUBLIC_MODEL, STRUCTURED_OUTPUTS
from m2f_client.address import DEFAULT_URL, open_transport
from m2f_client.errors import InvalidRequest, ModelNotFound, ServerError
from m2f_client.images import ImageSource, image_tensor
from m2f_client.result import LABEL_MAPS, ROW_OUTPUTS, Result
from m2f_client.transport import Parameter, Transport

NAMES_MODEL = "mask2former_postprocess"
_INT64 = range(-(2**63), 2**63)


class Client:
    """A connection to a Mask2Former server. A context manager; safe to share between threads.

    Args:
        url: `grpc://host:port` or `http://host:port`.
        timeout: seconds to wait for an answer; None waits for ever.
        model: the public ensemble.
        transport: what carries the requests instead of `url`; for tests and special connections.

    Raises:
        InvalidAddress: `url` is not one. Nothing is sent before the first request.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = 60.0,
        model: str = PUBLIC_MODEL,
        transport: Transport | None = None,
    ) -> None:
        self._transport = transport if transport is not None else open_transport(url, timeout)
        self._model = model

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._transport.url

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def predict(
        self, image: ImageSource, *, outputs: Sequence[str] = STRUCTURED_OUTPUTS, **parameters: Parameter | None
    ) -> Result:
        """Find the instances of one image.

        Args:
            image: path or bytes of a JPEG, PNG or WebP; pixels, uint8 [H, W, 3] RGB or [H, W] grey; a Pillow image.
                Pixels are sent as PNG: nothing is lost. A list is refused: `predict_batch` takes one.
            outputs: names of `m2f.contract.OUTPUTS`; the server computes only what is asked for.
            **parameters: request parameters (`score_threshold=0.5`, `classes="0,2"`, ...); None is not sent.

        Raises:
            UnreadableImage: the file cannot be read.
            InvalidRequest: the server (or the client, for it) refuses image, outputs or parameters, and says why.
            ServerUnavailable, ModelNotFound, Timeout, ServerError: see `m2f_client.errors`.
        """
        return self.predict_batch([image], outputs=outputs, **parameters)[0]

    def predict_batch(
        self,
        images: Sequence[ImageSource],
        *,
        outputs: Sequence[str] = STRUCTURED_OUTPUTS,
        **parameters: Parameter | None,
    ) -> list[Result]:
        """Find the instances of 1 to 8 images in one request: they succeed or fail together.

        For more images call `predict` from several threads: that keeps the server as busy, and each image has an
        answer of its own. Arguments and errors as for `predict`.
        """
        inputs = {"image": image_tensor(images)}
        names = needed_outputs(outputs, batched=len(images) > 1)
        arrays = self._transport.infer(self._model, inputs, names, checked_parameters(parameters))
        return [Result.from_batch(arrays, index) for index in range(len(images))]

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The model's class names, read from the server once; None where it states none.

        Raises:
            ServerUnavailable, Timeout, ServerError: see `m2f_client.errors`.
        """
        try:
            config = self._transport.model_config(NAMES_MODEL)
        except ModelNotFound:
            return None  # somebody else's repository
        return class_names_of(config)


def needed_outputs(outputs: Sequence[str], *, batched: bool) -> tuple[str, ...]:
    """Return what to ask the server for: `outputs`, and what is needed to read them.

    A mask cannot be decoded without `size`, and a batch not be unpadded without `num_instances`.
    """
    names = list(dict.fromkeys(outputs))
    if not names:
        raise InvalidRequest("no outputs asked for")
    if batched and any(name in ROW_OUTPUTS for name in names):
        names.append("num_instances")
    padded = "masks" in names or any(name in LABEL_MAPS for name in names)
    if "rle" in names or "packed_masks" in names or (batched and padded):
        names.append("size")
    return tuple(dict.fromkeys(names))


def checked_parameters(parameters: Mapping[str, Parameter | None]) -> dict[str, Parameter]:
    """Return the request parameters that both protocols can carry; None values are left out.

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
        checked[name] = plain
    return checked


def class_names_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the parameter `class_names` (a JSON list of strings) of a model configuration, or None.

    Raises:
        ServerError: the parameter is there and is something else.
    """
    text = config.get("parameters", {}).get("class_names", {}).get("string_value", "")
    if not text:
        return None
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ServerError(f"{NAMES_MODEL}: parameter class_names must be a JSON list of strings; got {text[:80]!r}")
    return tuple(names) or None
