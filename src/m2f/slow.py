"""The bound on the parts of a file, and the errors for files that are built to take long."""

from __future__ import annotations

from m2f.errors import InputError

MAX_PARTS = 1 << 16  # libpng's chunks are 8 KiB: 1 << 13 in 64 MiB, and Pillow reads each of them in 4 parts


def too_slow(why: str) -> InputError:
    """Return the error for a file that is built to take long."""
    return InputError(f"the image takes too long to decode: {why}", kind="image_too_large")


def too_many_parts() -> InputError:
    """Return the error for a file of very many tiny parts."""
    return too_slow(f"more than {MAX_PARTS} parts")
