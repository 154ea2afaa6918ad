"""What post-processing must know of a model, whatever the request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from m2f.errors import InputError, shown
from m2f.parameters import is_int, whole_number


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Facts of a model.

    Attributes:
        class_names: names of the classes by label; empty if not known.
        thing_classes: labels of the countable classes; the others are stuff. None: all classes are things.
        mask_stride: network-input pixels per mask cell along each axis.
    """

    class_names: tuple[str, ...] = ()
    thing_classes: frozenset[int] | None = None
    mask_stride: int = 4

    @classmethod
    def from_repository(cls, parameters: Mapping[str, str]) -> ModelFacts:
        """Read the facts out of a model's `parameters` block.

        Raises:
            InputError: a value cannot be read; the message names the parameter and what is allowed.
        """
        names = _json_list(parameters, "class_names", "strings", lambda name: isinstance(name, str))
        things = _json_list(parameters, "thing_classes", "class indices", lambda index: is_int(index) and index >= 0)
        return cls(
            class_names=tuple(names or ()),
            thing_classes=None if things is None else frozenset(things),
            mask_stride=whole_number(parameters, "mask_stride", cls.mask_stride),
        )

    def is_thing(self, label: int) -> bool:
        """Return whether a class is countable."""
        return self.thing_classes is None or label in self.thing_classes


NO_FACTS = ModelFacts()


def _json_list(parameters: Mapping[str, str], name: str, what: str, accepts: Callable[[Any], bool]) -> list[Any] | None:
    """Return a JSON list of the block, or None where the block does not have the parameter."""
    if name not in parameters:
        return None
    try:
        values = json.loads(parameters[name])
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, list) or not all(map(accepts, values)):
        raise InputError(
            f"parameter '{name}' must be a JSON list of {what}; got {shown(parameters[name])}", kind="parameter"
        )
    return values
