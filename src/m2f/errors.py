"""What m2f raises at its users: one base, and the two errors of the core."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args


class M2FError(Exception):
    """Base of every error that m2f raises at its users. The message says what was wrong and what is allowed."""


ErrorKind = Literal[
    "image_format",  # not an image, or of a format that is not read
    "image_damaged",
    "image_too_large",
    "parameter",
    "tensor",  # shapes or values of tensors that do not fit together
    "output_too_large",
]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)


class InputError(M2FError, ValueError):
    """What a client sent cannot be used; the message names it and says what is allowed.

    Attributes:
        kind: what was wrong, in a word; errors are counted by it.
    """

    def __init__(self, message: str, *, kind: ErrorKind = "tensor") -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def of_image(index: int, count: int) -> Iterator[None]:
    """Let an `InputError` say which image of a request it is about, where there are several."""
    try:
        yield
    except InputError as error:
        if count == 1:
            raise
        raise InputError(f"image {index} of {count}: {error}", kind=error.kind) from error


class EngineError(M2FError, RuntimeError):
    """What the engine made of a good input cannot be used."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: object) -> str:
    """Return a value for an error message, its middle left out where it is long: gRPC carries 8 kB of them."""
    return _SHORT.repr(value)
