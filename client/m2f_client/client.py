"""The clients: images in, `Result`s out. `Client` blocks, `AsyncClient` is awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property

from m2f.contract import CLASS_NAMES, PUBLIC_MODEL, STRUCTURED_OUTPUTS
from m2f_client.client_errors import InvalidRequest
from m2f_client.images import ImageSource
from m2f_client.request import (
    Default,
    build_request,
    checked_concurrency,
    checked_timeout,
    class_names_of,
    class_names_request,
    effective_timeout,
    identified,
    read_answer,
)
from m2f_client.result import Result
from m2f_client.tiled import TiledPicture, Tiling, tiled
from m2f_client.tls import Tls
from m2f_client.transports.address import DEFAULT_URL, Endpoint
from m2f_client.transports.connect import connect
from m2f_client.transports.protocol import Parameter, Transport
from m2f_client.transports.waiting import AWAITING, BLOCKING, Waiting, run_blocking

Progress = Callable[[int, int], object]
"""Called with the number of tiles done and the number of all tiles of a picture."""


class _AnyClient:
    """What `Client` and `AsyncClient` have in common: everything but how they wait."""

    _waiting: Waiting

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
        self._model = model
        self._transport = transport or _open(Endpoint.parse(url, headers, tls), shared_memory, self._waiting)

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._transport.url

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._model

    async def _predict(
        self,
        images: Sequence[ImageSource],
        outputs: Sequence[str],
        timeout: float | Default | None,
        parameters: Mapping[str, Parameter | None],
    ) -> list[Result]:
        seconds = effective_timeout(timeout, self._timeout)
        request = await self._waiting.aside(  # it reads files and compresses pixels
            build_request, images, model=self._model, outputs=outputs, timeout=seconds, parameters=parameters
        )
        with identified(request):
            return read_answer(await self._transport.infer(request), request)

    async def _predict_tiled(
        self,
        image: ImageSource,
        tiling: Tiling,
        *,
        concurrency: int,
        progress: Progress | None,
        outputs: Sequence[str],
        timeout: float | Default | None,
        parameters: Mapping[str, Parameter | None],
    ) -> Result:
        aside, done = self._waiting.aside, 0
        seconds = effective_timeout(timeout, self._timeout)
        picture = await aside(tiled, image, tiling, outputs, timeout=seconds)
        if not isinstance(picture, TiledPicture):
            return (await self._predict([picture], outputs, timeout, parameters))[0]

        total = len(picture.tiles)

        async def ask(index: int) -> None:
            with picture.named(index):
                pixels = await aside(picture.window, index)
                answer = await self._predict([pixels], picture.of_each, timeout, parameters)
                await aside(picture.take, index, *answer)

        def count() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total)

        with picture.picture:
            await self._waiting.each(ask, range(total), concurrency=checked_concurrency(concurrency), done=count)
        return await aside(picture.result, parameters)

    async def _read_class_names(self) -> tuple[str, ...] | None:
        request = await self._waiting.aside(class_names_request, model=self._model, timeout=self._timeout)
        with identified(request):
            try:
                return class_names_of(await self._transport.infer(request))
            except InvalidRequest as error:
                if CLASS_NAMES in str(error):
                    return None  # the model has no such output: m2f has not made it
                raise


def _open(endpoint: Endpoint, shared_memory: bool, waiting: Waiting) -> Transport:
    connection = connect(endpoint, waiting)
    if not shared_memory:
        return connection
    from m2f_client.transports.shared_memory import SharedMemoryTransport  # noqa: PLC0415 (slow to import)

    return SharedMemoryTransport(connection, endpoint, waiting)


class Client(_AnyClient):
    """A connection to a Mask2Former server. A context manager; safe to share between threads.

    A forked process (`os.fork`, or `multiprocessing` with the start method `fork`) may use the client: it opens
    connections of its own. If a gRPC call of the parent is in flight during the fork, calls of the child may time out.
    Over HTTP they do not.

    Args:
        url: `grpc://host:port` or `http://host:port/base-path`; `grpcs://` and `https://` for TLS. `host:port` is gRPC,
            and the line that `m2f serve --json` prints stands for its gRPC address. Several servers that hold the same
            models: `grpc://a:8001,b:8001`, or one name with several addresses. Requests go to all addresses in turn.
            Names are looked up again while the client is used. Requests are retried, within the timeout, only when a
            server is unavailable or closes the connection.
        timeout: seconds from the call to the answer, everything included; None waits for ever.
        model: name of a public model of the server; `m2f models` lists them.
        headers: sent with every request, e.g. `{"authorization": "Bearer ..."}`; gRPC calls them metadata.
        tls: certificates, if the system's authorities are not the ones to trust.
        shared_memory: large outputs (dense masks, label maps, logits) come through memory that this process shares
            with the server, which must run on the same host. For one server, not several.
        transport: carries the requests instead of a connection to `url`; for tests and special connections.

    Raises:
        InvalidAddress: `url`, `headers`, `tls` or `shared_memory` cannot be used. Nothing is sent before the first
            request.
    """

    _waiting = BLOCKING

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        run_blocking(self._transport.close())

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
            image: path or bytes of a JPEG, PNG or WebP, or that file open for binary reading; pixels, uint8 [H, W, 3]
                RGB or [H, W] grey; a Pillow image. Pixels, and files of other formats that Pillow reads without loss
                (TIFF, BMP, ...), are sent as PNG, so nothing is lost. A list is refused: pass it to `predict_batch`.
            outputs: names of `m2f.contract.OUTPUTS`; the server computes only these.
            timeout: seconds for this request, in place of the client's.
            **parameters: request parameters (`score_threshold=0.5`, `classes="0,2"`, ...); None is not sent.

        Raises:
            UnreadableImage: the file cannot be read.
            InvalidRequest: the image, an output or a parameter is refused; the message says why.
            ServerUnavailable, ModelNotFound, Timeout, ServerError, NoSharedMemory: see `m2f_client.client_errors`.
        """
        return run_blocking(self._predict([image], outputs, timeout, parameters))[0]

    def predict_batch(
        self,
        images: Sequence[ImageSource],
        *,
        outputs: Sequence[str] = STRUCTURED_OUTPUTS,
        timeout: float | Default | None = Default.CLIENT,
        **parameters: Parameter | None,
    ) -> list[Result]:
        """Find the instances of 1 to 8 images in one request: all of them succeed, or all fail.

        For more images call `predict` from several threads: that keeps the server as busy, and each image has an
        answer of its own. Arguments and errors as for `predict`.
        """
        return run_blocking(self._predict(images, outputs, timeout, parameters))

    def predict_tiled(
        self,
        image: ImageSource,
        *,
        tile: int = 1024,
        overlap: float = 0.2,
        whole: bool = False,
        concurrency: int = 8,
        progress: Progress | None = None,
        outputs: Sequence[str] = STRUCTURED_OUTPUTS,
        timeout: float | Default | None = Default.CLIENT,
        **parameters: Parameter | None,
    ) -> Result:
        """Find the instances of a picture that is larger than the network, in overlapping tiles.

        Each tile is a request. An object that lies in several tiles is one instance with one mask, by the rule of
        `m2f.joining`. A picture that one tile holds is sent as it is, as `predict` does.

        Args:
            image: as for `predict`.
            tile: side of a tile in pixels.
            overlap: part of a tile's side, 0 to less than 1, that it shares with its neighbour. An object that is not
                longer than this is seen whole by a tile.
            whole: also send the picture as a whole, reduced to at most 4,096 pixels along a side: objects that no tile
                sees whole are taken from it.
            concurrency: tiles in flight.
            progress: called with the number of tiles done and the number of all tiles, after each tile.
            outputs: names of the structured outputs. `areas` is int64.
            timeout: seconds for each tile, in place of the client's.
            **parameters: request parameters; limits such as `keep_top_k` hold for each tile.

        Raises:
            As `predict`; the message names the tile. The first error ends the call; the tiles in flight are waited for.
        """
        coroutine = self._predict_tiled(
            image,
            Tiling(tile, overlap, whole),
            concurrency=concurrency,
            progress=progress,
            outputs=outputs,
            timeout=timeout,
            parameters=parameters,
        )
        return run_blocking(coroutine)

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The model's class names, asked for once, with a tiny picture; None if the model states none.

        Raises:
            ServerUnavailable, ModelNotFound, Timeout, ServerError: see `m2f_client.client_errors`.
        """
        return run_blocking(self._read_class_names())


class AsyncClient(_AnyClient):
    """A connection to a Mask2Former server for one event loop; any number of its tasks may share the client.

    An asynchronous context manager. Arguments and errors are those of `Client`. The client connects at the first
    request and belongs to the event loop of that request. Cancelling a task drops its request here; a server that has
    begun to work on the request finishes it.
    """

    _waiting = AWAITING
    _names: tuple[tuple[str, ...] | None] | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

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
        return (await self._predict([image], outputs, timeout, parameters))[0]

    async def predict_batch(
        self,
        images: Sequence[ImageSource],
        *,
        outputs: Sequence[str] = STRUCTURED_OUTPUTS,
        timeout: float | Default | None = Default.CLIENT,
        **parameters: Parameter | None,
    ) -> list[Result]:
        """Find the instances of 1 to 8 images in one request; see `Client.predict_batch`."""
        return await self._predict(images, outputs, timeout, parameters)

    async def predict_tiled(
        self,
        image: ImageSource,
        *,
        tile: int = 1024,
        overlap: float = 0.2,
        whole: bool = False,
        concurrency: int = 8,
        progress: Progress | None = None,
        outputs: Sequence[str] = STRUCTURED_OUTPUTS,
        timeout: float | Default | None = Default.CLIENT,
        **parameters: Parameter | None,
    ) -> Result:
        """Find the instances of a picture that is larger than the network; see `Client.predict_tiled`.

        The first error, or cancelling the task, cancels the tiles in flight.
        """
        return await self._predict_tiled(
            image,
            Tiling(tile, overlap, whole),
            concurrency=concurrency,
            progress=progress,
            outputs=outputs,
            timeout=timeout,
            parameters=parameters,
        )

    @property
    def class_names(self) -> Awaitable[tuple[str, ...] | None]:
        """The model's class names, to be awaited; see `Client.class_names`."""
        return self._class_names()

    async def _class_names(self) -> tuple[str, ...] | None:
        if self._names is None:
            self._names = (await self._read_class_names(),)
        return self._names[0]
