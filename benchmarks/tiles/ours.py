"""`Client.predict_tiled`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from m2f.runs import Rect
from m2f.tiles import grid
from m2f_client import Client, Result
from m2f_client.pictures.opening import open_picture

from .child import Way, main
from .scores import Found


def prepare(
    url: str, picture: str, *, tile: int, overlap: float, threshold: float, in_flight: int, whole: bool = False
) -> Way:
    """Connect, and cut a corner of the picture.

    Args:
        url: address of the server.
        picture: path of the picture.
        tile: side of a tile.
        overlap: share of the side.
        threshold: lowest score.
        in_flight: number of requests in flight.
        whole: whether the picture as a whole is sent, too.
    """
    client = Client(url)
    settings = {
        "tile": tile,
        "overlap": overlap,
        "whole": whole,
        "concurrency": in_flight,
        "score_threshold": threshold,
    }

    def call(image: Any = picture) -> Result:
        return client.predict_tiled(image, **settings)

    with open_picture(picture) as opened:
        height, width = opened.height, opened.width
        call(opened.window(Rect(0, 0, 2 * tile, 2 * tile)))
    return Way((part.rect for part in grid(height, width, tile=tile, overlap=overlap)), call, found)


def found(result: Result) -> Iterator[Found]:
    """Return the instances of a result."""
    for label, score, counts in zip(result.labels, result.scores, result.rle, strict=True):
        yield Found(0, int(label), float(score), {"size": list(result.size), "counts": counts.decode()})


if __name__ == "__main__":
    main(prepare)
