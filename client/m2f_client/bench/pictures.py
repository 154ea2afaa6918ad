"""The images of a benchmark: read once before anything is timed, and then sent in turn."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from m2f.errors import M2FError
from m2f_client.images import served
from m2f_client.predict.sources import Sources, read

MOST_IMAGES = 64
"""Largest number of images that a benchmark sends. Of more images it takes some, evenly spread."""

_MOST_BYTES = 1 << 28  # of all images, which stay in memory
_NAMED = 3  # names that a message lists; it counts the rest
_DRAWN = "a drawn picture of 640 x 480"


@dataclass(frozen=True)
class Picture:
    """An encoded image.

    Attributes:
        name: what the user calls it.
        data: the bytes to send.
        transcoded: whether the client made a PNG of it, because the server does not read its format.
        read_ms: milliseconds that reading and transcoding took.
    """

    name: str
    data: bytes
    transcoded: bool = False
    read_ms: float = 0.0


class Pictures:
    """Images that several callers take in turn. Safe to share between threads.

    Args:
        pictures: the images.
        refused: names of images that cannot be used, by the reason.

    Attributes:
        refused: names of images that cannot be used, by the reason.
    """

    def __init__(self, pictures: Sequence[Picture], refused: Mapping[str, Sequence[str]] | None = None) -> None:
        self._pictures = list(pictures)
        self.refused: dict[str, list[str]] = {reason: list(names) for reason, names in (refused or {}).items()}
        self._lock = Lock()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._pictures)

    def __iter__(self) -> Iterator[Picture]:
        return iter(tuple(self._pictures))

    def take(self) -> Picture | None:
        """Return the next image; None if the server refuses all of them."""
        with self._lock:
            if not self._pictures:
                return None
            self._turn = (self._turn + 1) % len(self._pictures)
            return self._pictures[self._turn]

    def refuse(self, picture: Picture, reason: str) -> None:
        """Send an image no more."""
        with self._lock:
            if picture in self._pictures:
                self._pictures.remove(picture)
                self.refused.setdefault(reason, []).append(picture.name)

    def complaints(self) -> list[str]:
        """Return a message for each reason to refuse images."""
        return [f"{_named(names)}: {reason}" for reason, names in self.refused.items()]


def load(sources: Sources, *, timeout: float) -> Pictures:
    """Read images into memory: at most `MOST_IMAGES`, evenly spread over the sources, and at most 256 MiB.

    Args:
        sources: see `sources.expand`; empty for a drawn picture.
        timeout: seconds that a download or a pipe may take.
    """
    if not sources.names:
        return Pictures([Picture(_DRAWN, drawn())])
    count = len(sources.names)
    names = [sources.names[turn * count // MOST_IMAGES] for turn in range(MOST_IMAGES)]
    pictures: list[Picture] = []
    refused: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        if sum(len(picture.data) for picture in pictures) > _MOST_BYTES:
            break
        try:
            if name in sources.refused:
                raise M2FError(sources.refused[name])
            pictures.append(_picture(name, timeout))
        except M2FError as error:
            refused.setdefault(str(error), []).append(name)
    return Pictures(pictures, refused)


def _picture(name: str, timeout: float) -> Picture:
    started = time.perf_counter()
    data = read(name, timeout=timeout)
    sent = served(data)
    return Picture(name, sent, sent is not data, (time.perf_counter() - started) * 1e3)


def drawn() -> bytes:
    """Return a JPEG of 640 x 480 with a few figures on a shaded ground, the same at every call."""
    import cv2  # noqa: PLC0415 (slow, and only needed without images)

    ground = np.linspace(60, 200, 640, dtype=np.uint8)
    pixels = np.repeat(np.repeat(ground[None], 480, 0)[:, :, None], 3, 2)
    for turn, colour in enumerate(((200, 40, 40), (40, 160, 60), (50, 70, 200), (220, 180, 40))):
        centre = (100 + 145 * turn, 150 + 60 * (turn % 3))
        if turn % 2:
            cv2.rectangle(pixels, centre, (centre[0] + 90, centre[1] + 110), colour, -1)
        else:
            cv2.circle(pixels, centre, 40 + 12 * turn, colour, -1)
    _, jpeg = cv2.imencode(".jpg", pixels)
    return jpeg.tobytes()


def _named(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
