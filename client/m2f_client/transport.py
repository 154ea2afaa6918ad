"""How requests travel: one small protocol, with tritonclient's HTTP and gRPC clients behind it.

A test gives `Client` an object of its own with the same four members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]
Parameter = str | int | float | bool


class Transport(Protocol):
    """What `Client` needs from a connection. Every call raises only `M2FError`s."""

    url: str

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> dict[str, Array]:
        """Run `model` and return the named outputs, batch dimension first.

        Args:
            model: name of the model.
            inputs: arrays by input name; BYTES tensors are object arrays of `bytes`.
            outputs: the outputs wanted.
            parameters: request parameters, sent as they are.
        """

    def model_config(self, model: str) -> dict[str, Any]:
        """Return the configuration of `model` as Triton's JSON has it."""

    def close(self) -> None:
        """Close the connection."""


def request_tensors(triton: Any, inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """Return the inputs and requested outputs of one request, as objects of tritonclient's `http` or `grpc` module."""
    from tritonclient.utils import np_to_triton_dtype  # noqa: PLC0415 (slow: only where a connection is open)

    tensors = []
    for name, array in inputs.items():
        tensors.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    return tensors, [triton.InferRequestedOutput(name) for name in outputs]
