"""What a forked process must not share with its parent, such as connections."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class OfProcess(Generic[T]):
    """A value that each process makes for itself, when it first asks. Safe to share between threads.

    A forked process never uses its parent's value, and never closes it.

    Args:
        make: makes the value.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[int, T] = {}  # by process id

    def get(self) -> T:
        """Return the value of this process."""
        number = os.getpid()
        if number not in self._made:
            self._made.setdefault(number, self._make())
        return self._made[number]

    def pop(self) -> T | None:
        """Return the value of this process, and forget it; None if there is none."""
        return self._made.pop(os.getpid(), None)
