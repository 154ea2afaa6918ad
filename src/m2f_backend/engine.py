"""What a Python model that runs a network needs of the library that computes the network: one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

from m2f.errors import InputError

Tensor = Any
"""An output, in the processor's or a device's memory, with `__dlpack__`, `__dlpack_device__` and `numpy()`."""


class Engine(Protocol):
    """A loaded network."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
        """Compute a batch.

        Args:
            inputs: array by input name; the first dimension is the batch.

        Returns:
            Tensor by output name, for each output of the model's configuration.

        Raises:
            InputError: the network does not take arrays of these shapes.
        """


def check_shapes(inputs: Mapping[str, npt.NDArray[Any]], wanted: Mapping[str, tuple[int | None, ...]]) -> None:
    """Compare the shapes of a request's arrays with those that the network takes.

    Args:
        inputs: array by input name.
        wanted: shape by input name; None for a side that the network leaves free.

    Raises:
        InputError: a shape differs.
    """
    for name, array in inputs.items():
        shape = wanted[name]
        if len(shape) != array.ndim or any(side not in (None, here) for side, here in zip(shape, array.shape)):  # noqa: B905
            stated = ", ".join("any" if side is None else str(side) for side in shape)
            raise InputError(f"{name} has the shape ({', '.join(map(str, array.shape))}); the network takes ({stated})")
