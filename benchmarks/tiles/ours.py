"""`Client.predict_tiled`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from m2f.tiles import grid
from m2f_client import Client, Result

from .child import Way, main
from .scores import Found


def prepare(
    url: str, pixels: Any, *, tile: int, overlap: float, threshold: float, in_flight: int, whole: bool = False
) -> Way:
    """Connect, and cut a corner of the picture."""
    client = Client(url)
    settings = {
        "tile": tile,
        "overlap": overlap,
        "whole": whole,
        "concurrency": in_flight,
        "score_threshold": threshold,
    }

    def call(picture: Any = pixels) -> Result:
        return client.predict_tiled(picture, **settings)

    call(pixels[: 2 * tile, : 2 * tile])
    return Way((part.rect for part in grid(*pixels.shape[:2], tile=tile, overlap=overlap)), call, found)


def found(result: Result) -> Iterator[Found]:
    """Return the instances of a result."""
    for label, score, counts in zip(result.labels, result.scores, result.rle, strict=True):
        yield Found(0, int(label), float(score), {"size": list(result.size), "counts": counts.decode()})


if __name__ == "__main__":
    main(prepare)
