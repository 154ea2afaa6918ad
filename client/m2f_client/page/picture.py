"""The picture on the page, drawn at screen size: that takes half the time, and keeps the labels readable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from m2f_client.converters.draw import overlay
from m2f_client.pictures.opening import open_picture
from m2f_client.result import Result
from m2f_client.scaled import scaled

MAX_SIDE = 1600
"""Pixels of the longer side; a phone's photograph has 4000."""


def draw(path: Path, result: Result, class_names: Sequence[str] | None) -> Image.Image:
    """Return the image in a file with its instances drawn on it, at most `MAX_SIDE` pixels a side.

    Raises:
        UnreadableImage: the file cannot be read or decoded.
    """
    with open_picture(path) as picture:
        image = Image.fromarray(picture.reduced(max(1, max(picture.height, picture.width) // MAX_SIDE))).convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return overlay(image, scaled(result, image.size), class_names)
