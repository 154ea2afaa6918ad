"""The client for asyncio: `Client` with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress

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
from m2f_client.transports.address import DEFAULT_URL, Endpoint, open_async_transport
from m2f_client.transports.protocol import AsyncTransport, Parameter


class AsyncClient:
    """A connection to a Mask2Former server for one event loop; any number of its tasks may share it.

    An asynchronous context manager. Arguments and errors are those of `Client`. It connects at the first request,
    and belongs to the loop of that request. A cancelled request is dropped here; a server that has begun on it
    finishes it.
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
        transport: AsyncTransport | None = None,
    ) -> None:
        self._timeout = checked_timeout(timeout)
        if transport is None:
            transport = open_async_transport(Endpoint.parse(url, headers, tls), shared_memory=shared_memory)
        self._transport = transport
        self._model = model
        self._class_names: tuple[str, ...] | None = None
        self._knows_class_names = False

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._transport.url

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()

    async def predict(
        self,
        image: ImageSource,
        *,
        outputs: Sequence[str] = STRUCTURED_OUTPUTS,
        timeout: float | Default | None = Default.CLIENT,
        **parameters: Parameter | None,
    ) -> Result:
        """Find the instances of one image; see `Client.predict`."""
        return (await self.predict_batch([image], outputs=outputs, timeout=timeout, **parameters))[0]

    async def predict_batch(
        self,
        images: Sequence[ImageSource],
        *,
        outputs: Sequence[str] = STRUCTURED_OUTPUTS,
        timeout: float | Default | None = Default.CLIENT,
        **parameters: Parameter | None,
    ) -> list[Result]:
        """Find the instances of 1 to 8 images in one request; see `Client.predict_batch`."""
        seconds = effective_timeout(timeout, self._timeout)
        request = await asyncio.to_thread(  # it reads files and compresses pixels
            build_request, images, model=self._model, outputs=outputs, timeout=seconds, parameters=parameters
        )
        with identified(request):
            return read_answer(await self._transport.infer(request), request)

    @property
    def class_names(self) -> Awaitable[tuple[str, ...] | None]:
        """The model's class names, to be awaited; see `Client.class_names`."""
        return self._read_class_names()

    async def _read_class_names(self) -> tuple[str, ...] | None:
        if not self._knows_class_names:
            with suppress(ModelNotFound):  # somebody else's repository
                self._class_names = class_names_of(await self._transport.model_config(NAMES_MODEL, self._timeout))
            self._knows_class_names = True
        return self._class_names
