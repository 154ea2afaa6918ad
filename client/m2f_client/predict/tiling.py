"""The pictures of a run in tiles: their requests, and the answers kept until a picture is done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore, Event
from typing import Any

from PIL import Image

from m2f.contract import STRUCTURED_OUTPUTS
from m2f.errors import M2FError
from m2f_client.client import Client
from m2f_client.client_errors import UnreadableImage
from m2f_client.converters import draw
from m2f_client.images import encoded
from m2f_client.predict.kept import Head, KeptTiles
from m2f_client.predict.patience import Patience
from m2f_client.predict.shards import key_of
from m2f_client.printable import complain
from m2f_client.pump import in_order
from m2f_client.result import Result
from m2f_client.scaled import scaled
from m2f_client.tiled import TiledPicture, Tiling, tiled

DRAWN_PIXELS = 32_000_000
"""Most pixels of an overlay; that of a larger picture is reduced by a whole number along both sides."""

_AT_ONCE = 2  # pictures: while the last tiles of one are on their way, the next begins

Progress = Callable[[str, int, int], object]
"""Called with the name of a picture, the number of its tiles that are done, and the number of all."""


class Stopped(M2FError):  # noqa: N818 (as in `client_errors`)
    """The run stops before all tiles of a picture are done: the picture stays to be done."""


@dataclass(frozen=True)
class Seen:
    """What was found in a picture.

    Attributes:
        result: the instances.
        factor: how many times smaller the overlay is.
        overlay: draws the picture with its instances; takes the class names.
    """

    result: Result
    factor: int
    overlay: Callable[[Sequence[str] | None], Image.Image]


class Tiles:
    """Does pictures in tiles; safe to call from several threads. Pictures that one tile holds are single requests.

    Args:
        client: the connection.
        patience: asks again while the server is away.
        parameters: request parameters.
        tiling: how pictures are cut.
        folder: where the answers about tiles are kept until their picture is done; None: nowhere.
        concurrency: number of requests in flight.
        stop: once set, no further tile is begun.
        progress: called after each tile.
    """

    def __init__(
        self,
        client: Client,
        patience: Patience,
        parameters: Mapping[str, Any],
        tiling: Tiling,
        *,
        folder: Path | None,
        concurrency: int,
        stop: Event,
        progress: Progress,
    ) -> None:
        self._client, self._patience, self._parameters = client, patience, parameters
        self._tiling, self._folder = tiling, folder
        self._concurrency, self._stop, self._progress = concurrency, stop, progress
        self._requests, self._pictures = BoundedSemaphore(concurrency), BoundedSemaphore(_AT_ONCE)

    @contextmanager
    def seen(self, name: str, source: str | bytes) -> Iterator[Seen]:
        """Do one picture, which stays open for the overlay until the end of the block.

        Args:
            name: name of the image in the outputs.
            source: path of its file, or the encoded image.

        Raises:
            Stopped: the run stops; the tiles that are done are kept.
            M2FError: the picture cannot be read, or a tile failed; the tiles that are done are kept.
        """
        with ExitStack() as large:
            large.enter_context(self._pictures)
            if self._stop.is_set():
                raise Stopped("no tile done")
            picture = _opened(source, self._tiling)
            if isinstance(picture, TiledPicture):
                large.enter_context(picture.picture)
                with _without_path(source):
                    self._do(name, source, picture)
                yield self._of_tiles(picture)
                return
        result = self._ask(picture, STRUCTURED_OUTPUTS)
        yield Seen(result, 1, lambda names: draw.overlay(draw.open_upright(picture), result, names))

    def forget(self, name: str) -> None:
        """Remove what is kept of a picture."""
        if self._folder is not None:
            self._file(name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder, if nothing is kept."""
        if self._folder is not None:
            with suppress(OSError):
                self._folder.rmdir()

    def _ask(self, pixels: Any, outputs: Sequence[str]) -> Result:
        with self._requests:
            return self._patience(lambda: self._client.predict(pixels, outputs=outputs, **self._parameters))

    def _do(self, name: str, source: str | bytes, picture: TiledPicture) -> None:
        """Ask about the tiles that are not done yet."""
        if self._folder is None:
            self._ask_all(name, picture, None)
            return
        with closing(KeptTiles(self._file(name), self._head(name, source))) as kept:
            if kept.dropped:
                complain(f"{name}: the picture has changed since its tiles were kept; it starts again")
            if kept:
                complain(f"{name}: {len(kept)} of {len(picture.tiles)} tiles done already")
            self._ask_all(name, picture, kept)

    def _ask_all(self, name: str, picture: TiledPicture, kept: KeptTiles | None) -> None:
        total = len(picture.tiles)

        def ask(index: int) -> None:
            known = kept.get(index) if kept is not None else None
            with picture.named(index):
                answer = self._ask(picture.window(index), picture.of_each) if known is None else known
                picture.take(index, answer)  # checks it
            if kept is not None and known is None:
                kept.add(index, answer)

        done = 0
        with in_order(ask, range(total), concurrency=self._concurrency, stop=self._stop) as ends:
            for done, _ in enumerate(ends, 1):
                self._progress(name, done, total)
        if done < total:
            raise Stopped(f"{done} of {total} tiles done")

    def _head(self, name: str, source: str | bytes) -> Head:
        return {
            "file_name": name,
            "picture": _fingerprint(source),
            "model": self._client.model,
            "parameters": self._parameters,
            "tiling": self._tiling.members(),
        }

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key_of(name):016x}.jsonl"

    def _of_tiles(self, picture: TiledPicture) -> Seen:
        result = picture.result(self._parameters)
        factor = 1
        while -(-picture.height // factor) * -(-picture.width // factor) > DRAWN_PIXELS:
            factor += 1
        style = draw.Style.for_size(self._tiling.tile, self._tiling.tile)

        def overlay(names: Sequence[str] | None) -> Image.Image:
            image = Image.fromarray(picture.picture.reduced(factor)).convert("RGB")
            return draw.overlay(image, scaled(result, image.size), names, style=style)

        return Seen(result, factor, overlay)


def _opened(source: str | bytes, tiling: Tiling) -> TiledPicture | bytes:
    """Return a picture in tiles, or the encoded image if one tile holds it."""
    with _without_path(source):
        picture = tiled(source, tiling, STRUCTURED_OUTPUTS)
        return picture if isinstance(picture, TiledPicture) else encoded(picture)


@contextmanager
def _without_path(source: str | bytes) -> Iterator[None]:
    """Take the path out of an UnreadableImage: the run names the image."""
    try:
        yield
    except UnreadableImage as error:
        raise UnreadableImage(str(error).replace(f"{source!s}: ", "")) from error


def _fingerprint(source: str | bytes) -> str:
    """Return a text that changes with a picture."""
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).hexdigest()
    status = Path(source).stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns}"
