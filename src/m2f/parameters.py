"""Parameters as dataclass fields: each field states its default, what it allows and what it means, once.

A model's `parameters` block holds strings; a request's parameters are typed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from m2f.errors import InputError, shown


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


def parameter(allowed: Allowed, meaning: str, *, default: Any = MISSING) -> Any:
    """Return a dataclass field for a parameter; `meaning` is the line that the documentation has of it."""
    return field(default=default, metadata={"allowed": allowed, "meaning": meaning})


def check_parameters(instance: Any) -> None:
    """Check every field of a dataclass instance.

    Raises:
        InputError: a value is not allowed; the message names the parameter, the value and what is allowed.
    """
    for each in fields(instance):
        check_value(each.name, getattr(instance, each.name), each.metadata["allowed"])


def check_value(name: str, value: object, allowed: Allowed) -> None:
    """Check one value.

    Raises:
        InputError: the value is not allowed.
    """
    if not allowed.accepts(value):
        raise InputError(f"parameter '{name}' must be {allowed.text}; got {shown(value)}", kind="parameter")


def read_parameters(of: Any, block: Mapping[str, str]) -> dict[str, Any]:
    """Read the fields of a dataclass that a model's `parameters` block has; lists become tuples.

    Raises:
        InputError: a value is not JSON.
    """
    return {
        each.name: _parse(each.name, block[each.name], each.metadata["allowed"])
        for each in fields(of)
        if each.name in block
    }


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
