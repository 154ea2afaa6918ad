"""The base of every error that m2f raises, and the two errors of the core."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args


class M2FError(Exception):
    """Base of every error that m2f raises. The message says what was wrong and what is allowed."""


ErrorKind = Literal[
    "image_format",  # not an image, or of another format
    "image_damaged",
    "image_too_large",
    "parameter",
    "tensor",  # shapes or values of tensors
    "output_too_large",
]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)


class InputError(M2FError, ValueError):
    """An input of the client is invalid; the message names the input and says what is allowed.

    Attributes:
        kind: what was wrong, in a word; the metrics count errors by kind.
    """

    def __init__(self, message: str, *, kind: ErrorKind = "tensor") -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def of_image(index: int, count: int) -> Iterator[None]:
    """Prefix an `InputError` with the image that it is about, if the request has several."""
    try:
        yield
    except InputError as error:
        if count == 1:
            raise
        raise InputError(f"image {index} of {count}: {error}", kind=error.kind) from error


class EngineError(M2FError, RuntimeError):
    """The engine's answer to a valid input is unusable."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: object) -> str:
    """Return a value for an error message; a long one loses its middle, because gRPC carries 8 kB of message."""
    return _SHORT.repr(value)
