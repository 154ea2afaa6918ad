"""What a client asks of a connection, and what the connections of both protocols share.

A test gives `Client` or `AsyncClient` an object of its own with the members of `Transport`; `m2f_client.fake` has one.
"""

from __future__ import annotations

import math
import mmap
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from m2f_client.answer import readable
from m2f_client.client_errors import ServerError, ServerUnavailable

S = TypeVar("S")
T = TypeVar("T")
Array = npt.NDArray[Any]
Parameter = str | int | float | bool


@dataclass(frozen=True)
class Place:
    """Shared memory that the server writes an output to.

    Attributes:
        region: name that the server knows the shared memory by.
        memory: the same memory in this process.
        offset: byte at which the output begins.
        byte_size: bytes reserved for the output.
    """

    region: str
    memory: mmap.mmap
    offset: int
    byte_size: int

    def read(self, dtype: npt.DTypeLike, shape: Sequence[int]) -> Array:
        """Return a copy of the output."""
        return np.frombuffer(self.memory, dtype, math.prod(shape), self.offset).reshape(shape).copy()


@dataclass(frozen=True)
class Request:
    """One inference.

    Attributes:
        model: name of the model.
        inputs: arrays by input name; BYTES tensors are object arrays of `bytes`.
        outputs: names of the wanted outputs.
        parameters: request parameters, sent unchanged.
        timeout: seconds from the call to the answer; None waits for ever.
        places: shared memory by the name of the output that goes there.
        id: name of the request in the server's log and traces.
    """

    model: str
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    timeout: float | None
    places: Mapping[str, Place] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(8), compare=False)


class Transport(Protocol):
    """What a client needs from a connection. Every call raises only `M2FError`s.

    The methods are coroutines for both clients. `Client` needs ones that never suspend: they may block.
    """

    url: str

    async def infer(self, request: Request) -> dict[str, Array]:
        """Run the model and return the wanted outputs, batch dimension first."""

    async def close(self) -> None:
        """Close the connection."""


class Connection(Transport, Protocol):
    """A `Transport` to a real server, with the rest of what m2f asks a server for."""

    async def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`, as Triton's JSON has it.

        Over gRPC 64-bit numbers are text, and default values are left out.
        """

    async def register_memory(self, name: str, byte_size: int, timeout: float | None) -> None:
        """Let the server map the file /dev/shm/`name`.

        Raises:
            NoSharedMemory: the server cannot open the file.
        """

    async def unregister_memory(self, name: str, timeout: float | None) -> None:
        """Let the server unmap the file. Nothing happens if the server does not know the name.

        Raises:
            NoSharedMemory: a request uses the memory.
        """

    async def statistics(self, timeout: float | None) -> Sequence[Mapping[str, Any]]:
        """Return Triton's `model_stats`, an entry for each version of each model.

        Over gRPC the numbers are text, and zeros are left out.
        """


class Deadline:
    """The end of a call's timeout. All waits of the call share it."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Return the seconds left, at least 0; None without a timeout."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


async def first_available(servers: Sequence[S], ask: Callable[[S], Awaitable[T]]) -> T:
    """Return the answer of the first server that does not raise ServerUnavailable.

    Raises:
        ServerUnavailable: no server is available; the error is the last server's.
    """
    for server in servers[:-1]:
        with suppress(ServerUnavailable):
            return await ask(server)
    return await ask(servers[-1])


def infer_arguments(triton: Any, request: Request) -> dict[str, Any]:
    """Return what tritonclient needs to encode a request.

    Args:
        triton: the module `tritonclient.http` or `tritonclient.grpc`.
        request: the inference.
    """
    from tritonclient.utils import np_to_triton_dtype  # noqa: PLC0415 (slow: only where a connection is open)

    tensors = []
    for name, array in request.inputs.items():
        tensors.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    outputs = {name: triton.InferRequestedOutput(name) for name in request.outputs}
    for name, place in request.places.items():
        outputs[name].set_shared_memory(place.region, place.byte_size, place.offset)
    return {
        "request_id": request.id,
        "inputs": tensors,
        "outputs": list(outputs.values()),
        "parameters": dict(request.parameters),
    }


def arrays(answer: Any, request: Request) -> dict[str, Array]:
    """Return the wanted outputs of `request` from tritonclient's `InferResult`.

    Raises:
        ServerError: an output is missing or cannot be read.
    """
    with readable():
        missing = [name for name in request.outputs if answer.get_output(name) is None]
        if missing:
            raise ServerError(f"the server's answer has no output '{missing[0]}'")
        return {
            name: _placed(answer.get_output(name), request.places[name])
            if name in request.places
            else answer.as_numpy(name)
            for name in request.outputs
        }


def _placed(output: Any, place: Place) -> Array:
    """Read an output from shared memory.

    Args:
        output: the answer's description of the output: JSON over HTTP, a message over gRPC.
        place: the memory it was written to.
    """
    from tritonclient.utils import triton_to_np_dtype  # noqa: PLC0415

    datatype, shape = (output[k] if isinstance(output, dict) else getattr(output, k) for k in ("datatype", "shape"))
    return place.read(triton_to_np_dtype(datatype), shape)
