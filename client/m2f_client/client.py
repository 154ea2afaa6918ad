"""The client: images in, `Result`s out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from m2f.contract import PUBLIC_MODEL, STRUCTURED_OUTPUTS
from m2f_client.client_errors import ModelNotFound
from m2f_client.images import ImageSource
from m2f_client.request import (
    NAMES_MODEL,
    Default,
    build_request,
    checked_timeout,
    class_names_of,
    effective_timeout,
    identified,
    read_answer,
)
from m2f_client.result import Result
from m2f_client.tls import Tls
from m2f_client.transports.address import DEFAULT_URL, Endpoint, open_transport
from m2f_client.transports.protocol import Parameter, Transport


class Client:
    """A connection to a Mask2Former server. A context manager; safe to share between threads.

    Args:
        url: `grpc://host:port` or `http://host:port/base-path`; `grpcs://` and `https://` for TLS. Several servers
            that hold the same models: `grpc://a:8001,b:8001`. gRPC takes them in turn; HTTP stays with one and
            goes on to the next when it does not answer. A server that is unavailable is asked again, or the next
            one is, within the timeout: no other error is retried.
        timeout: seconds from the call to the answer, everything included; None waits for ever.
        model: the public ensemble.
        headers: sent with every request, e.g. `{"authorization": "Bearer ..."}`; gRPC calls them metadata.
        tls: certificates, where the defaults do not do.
        shared_memory: large outputs (dense masks, label maps, logits) come through memory that this process shares
            with the server, which must run on the same host. For one server, not several.
        transport: what carries the requests instead of `url`; for tests and special connections.

    Raises:
        InvalidAddress: `url`, `headers`, `tls` or `shared_memory` cannot be used. Nothing is sent before the first
            request.
        ServerUnavailable: none of several gRPC host names is known; they are looked up once, here.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = 60.0,
        model: str = PUBLIC_MODEL,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        shared_memory: bool = False,
        transport: Transport | None = None,
    ) -> None:
        self._timeout = checked_timeout(timeout)
        if transport is None:
            transport = open_transport(Endpoint.parse(url, headers, tls), shared_memory=shared_memory)
        self._transport = transport
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
        self,
        image: ImageSource,
        *,
        outputs: Sequence[str] = STRUCTURED_OUTPUTS,
        timeout: float | Default | None = Default.CLIENT,
        **parameters: Parameter | None,
    ) -> Result:
        """Find the instances of one image.

        Args:
            image: path or bytes of a JPEG, PNG or WebP; pixels, uint8 [H, W, 3] RGB or [H, W] grey; a Pillow image.
                Pixels are sent as PNG: nothing is lost. A list is refused: `predict_batch` takes one.
            outputs: names of `m2f.contract.OUTPUTS`; the server computes only what is asked for.
            timeout: seconds for this request, in place of the client's.
            **parameters: request parameters (`score_threshold=0.5`, `classes="0,2"`, ...); None is not sent.

        Raises:
            UnreadableImage: the file cannot be read.
            InvalidRequest: the server (or the client, for it) refuses image, outputs or parameters, and says why.
            ServerUnavailable, ModelNotFound, Timeout, ServerError, NoSharedMemory: see `m2f_client.client_errors`.
        """
        return self.predict_batch([image], outputs=outputs, timeout=timeout, **parameters)[0]

    def predict_batch(
        self,
        images: Sequence[ImageSource],
        *,
        outputs: Sequence[str] = STRUCTURED_OUTPUTS,
        timeout: float | Default | None = Default.CLIENT,
        **parameters: Parameter | None,
    ) -> list[Result]:
        """Find the instances of 1 to 8 images in one request: they succeed or fail together.

        For more images call `predict` from several threads: that keeps the server as busy, and each image has an
        answer of its own. Arguments and errors as for `predict`.
        """
        seconds = effective_timeout(timeout, self._timeout)
        request = build_request(images, model=self._model, outputs=outputs, timeout=seconds, parameters=parameters)
        with identified(request):
            return read_answer(self._transport.infer(request), request)

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The model's class names, read from the server once; None where it states none.

        Raises:
            ServerUnavailable, Timeout, ServerError: see `m2f_client.client_errors`.
        """
        try:
            config = self._transport.model_config(NAMES_MODEL, self._timeout)
        except ModelNotFound:
            return None  # somebody else's repository
        return class_names_of(config)
