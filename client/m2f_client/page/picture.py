"""The picture on the page, drawn at screen size: that takes half the time, and keeps the labels readable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from m2f_client.converters.draw import open_upright, overlay
from m2f_client.images import encoded
from m2f_client.result import Result
from m2f_client.scaled import scaled

MAX_SIDE = 1600
"""Pixels of the longer side; a phone's photograph has 4000."""


def draw(path: Path, result: Result, class_names: Sequence[str] | None) -> Image.Image:
    """Return the image in a file with its instances drawn on it, at most `MAX_SIDE` pixels a side.

    Raises:
        UnreadableImage: the file cannot be read or decoded.
    """
    image = open_upright(encoded(path))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return overlay(image, scaled(result, image.size), class_names)
