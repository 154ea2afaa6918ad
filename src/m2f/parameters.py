"""Parameters as dataclass fields: each field states its default, what it allows and what it means, once.

A model's `parameters` block holds strings; a request's parameters are typed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from m2f.errors import InputError, shown

P = TypeVar("P", bound="Parameters")


@dataclass(frozen=True)
class Allowed:
    """What a parameter allows.

    Attributes:
        text: the values in words, as an error message says them.
        accepts: whether a value is allowed.
        is_text: a repository writes the value as it is; otherwise as JSON.
    """

    text: str
    accepts: Callable[[Any], bool]
    is_text: bool = False


REQUIRED = MISSING


def parameter(default: Any, allowed: Allowed, meaning: str) -> Any:
    """Return a dataclass field; `meaning` is its line in the documentation."""
    return field(default=default, metadata={"allowed": allowed, "meaning": meaning})


class Parameters:
    """Base of dataclasses whose fields are made by `parameter`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InputError: a value is not allowed; the message names the parameter, the value and what is allowed.
        """
        for each in fields(self):
            check_value(each.name, getattr(self, each.name), each.metadata["allowed"])

    @classmethod
    def from_repository(cls: type[P], block: Mapping[str, str]) -> P:
        """Read the fields out of a model's `parameters` block, where every value is a string; other keys are ignored.

        Raises:
            InputError: a value cannot be read, or is not allowed.
        """
        named = (each for each in fields(cls) if each.name in block)
        return cls(**{each.name: _parse(each.name, block[each.name], each.metadata["allowed"]) for each in named})


def check_value(name: str, value: object, allowed: Allowed) -> None:
    """Check one value.

    Raises:
        InputError: the value is not allowed.
    """
    if not allowed.accepts(value):
        raise InputError(f"parameter '{name}' must be {allowed.text}; got {shown(value)}", kind="parameter")


def _parse(name: str, text: str, allowed: Allowed) -> Any:
    if allowed.is_text:
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise InputError(f"parameter '{name}' must be {allowed.text}; got {shown(text)}", kind="parameter") from None
    return tuple(value) if isinstance(value, list) else value


def whole_number(parameters: Mapping[str, str], name: str, default: int) -> int:
    """Read a whole number >= 1, such as `mask_stride`, out of a model's `parameters` block.

    Raises:
        InputError: the value is not a whole number >= 1.
    """
    text = parameters.get(name, str(default)).strip()
    check_value(name, text, Allowed(COUNT.text, lambda value: value.isdecimal() and int(value) >= 1))
    return int(text)


def one_of(choices: Iterable[str]) -> Allowed:
    """Allow one of some words."""
    words = tuple(choices)
    return Allowed("one of: " + ", ".join(words), lambda value: value in words, is_text=True)


def is_int(value: object) -> bool:
    """Return whether a value is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


NO_LIMIT = -1
FRACTION = Allowed("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
LIMIT = Allowed(
    "a whole number >= 1, or -1 for no limit", lambda value: is_int(value) and (value >= 1 or value == NO_LIMIT)
)
COUNT = Allowed("a whole number >= 1", lambda value: is_int(value) and value >= 1)
BOOLEAN = Allowed("true or false", lambda value: isinstance(value, bool))
