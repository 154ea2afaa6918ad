"""Open any image as a picture that is read in parts."""

from __future__ import annotations

from m2f_client.images import ImageSource, decoded
from m2f_client.pictures.picture import Picture, PictureInMemory

MAX_SIDE = 1 << 24
"""Longest side of a picture in pixels: the numbers of `boxes`, float32, are exact up to it."""

MAX_DECODED_PIXELS = 1 << 30
"""Most pixels of a picture that is decoded into memory, such as a JPEG: 3 GiB."""

_MAX_BYTES = 1 << 32  # of a file that is decoded into memory


def open_picture(image: ImageSource, *, timeout: float | None = None) -> Picture:
    """Open an image as a picture. Pixels are those that the server would read of the image.

    Args:
        image: as for `Client.predict`.
        timeout: seconds that reading a pipe may take; None waits for ever.

    Raises:
        InvalidRequest: the image has another type, or an array another dtype or shape.
        UnreadableImage: the file cannot be read; the message begins with its path, if it was given by path.
    """
    limits = {"max_pixels": MAX_DECODED_PIXELS, "max_side": MAX_SIDE, "max_bytes": _MAX_BYTES}
    return PictureInMemory(decoded(image, **limits, timeout=timeout))
