"""How requests travel: one small protocol, with tritonclient's HTTP and gRPC clients behind it.

A test gives `Client` an object of its own with the same four members; `fake` has one.
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
    """Where an output goes, in place of the wire.

    Attributes:
        region: the name that the server knows the shared memory by.
        memory: the same memory on this side.
        offset: where the output begins.
        byte_size: how much there is for it.
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
        outputs: the outputs wanted.
        parameters: request parameters, sent as they are.
        timeout: seconds from the call to the answer; None waits for ever.
        places: outputs that go to shared memory, by name.
        id: what the server's log and traces call the request.
    """

    model: str
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    timeout: float | None
    places: Mapping[str, Place] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(8), compare=False)


class Transport(Protocol):
    """What `Client` needs from a connection. Every call raises only `M2FError`s."""

    url: str

    def infer(self, request: Request) -> dict[str, Array]:
        """Run the model and return the outputs wanted, batch dimension first."""

    def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model` as Triton's JSON has it."""

    def close(self) -> None:
        """Close the connection."""


class AsyncTransport(Protocol):
    """What `AsyncClient` needs: the same as `Transport`, awaited."""

    url: str

    async def infer(self, request: Request) -> dict[str, Array]:
        """As `Transport.infer`."""

    async def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """As `Transport.model_config`."""

    async def close(self) -> None:
        """Close the connection."""


class SharingTransport(Transport, Protocol):
    """A `Transport` to a server that may write outputs to shared memory; see `Request.places`."""

    def register_memory(self, name: str, byte_size: int, timeout: float | None) -> None:
        """Let the server map the file of this name in /dev/shm.

        Raises:
            NoSharedMemory: it cannot open the file.
        """

    def unregister_memory(self, name: str, timeout: float | None) -> None:
        """Let the server unmap it; nothing happens if it does not know the name.

        Raises:
            NoSharedMemory: a request uses it.
        """


class Connection(SharingTransport, Protocol):
    """All that the connections of both protocols can."""

    def statistics(self, timeout: float | None) -> Sequence[Mapping[str, Any]]:
        """Return Triton's `model_stats`, an entry for each version of each model.

        Over gRPC the numbers in it are text, and zeros are left out.
        """


class AsyncSharingTransport(AsyncTransport, Protocol):
    """A `SharingTransport`, awaited; letting go is for `shared_memory_guard`."""

    async def register_memory(self, name: str, byte_size: int, timeout: float | None) -> None:
        """As `SharingTransport.register_memory`."""


class Deadline:
    """A moment that several waits share."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Return the seconds that are left, at least 0; None: for ever."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


class Targets:
    """Servers that can stand in for each other: the one that answered last is asked first. Safe between threads."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = tuple(targets)
        self._first = 0

    def in_turn(self) -> tuple[str, ...]:
        """Return every target once, in the order to ask them in."""
        first = self._first
        return self._targets[first:] + self._targets[:first]

    def pass_over(self, target: str) -> None:
        """Begin with the next one from now on, if `target` is still the first."""
        if self._targets[self._first] == target:
            self._first = (self._first + 1) % len(self._targets)


def first_available(servers: Sequence[S], ask: Callable[[S], T]) -> T:
    """Return the answer of the first server that does not raise ServerUnavailable, or raise the last one's."""
    for server in servers[:-1]:
        with suppress(ServerUnavailable):
            return ask(server)
    return ask(servers[-1])


async def first_available_async(servers: Sequence[S], ask: Callable[[S], Awaitable[T]]) -> T:
    """`first_available`, awaited."""
    for server in servers[:-1]:
        with suppress(ServerUnavailable):
            return await ask(server)
    return await ask(servers[-1])


def infer_arguments(triton: Any, request: Request, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of `infer` for a client of tritonclient's `http` or `grpc` module, or of their `aio`."""
    from tritonclient.utils import np_to_triton_dtype  # noqa: PLC0415 (slow: only where a connection is open)

    tensors = []
    for name, array in request.inputs.items():
        tensors.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    outputs = {name: triton.InferRequestedOutput(name) for name in request.outputs}
    for name, place in request.places.items():
        outputs[name].set_shared_memory(place.region, place.byte_size, place.offset)
    return {
        "model_name": request.model,
        "request_id": request.id,
        "inputs": tensors,
        "outputs": list(outputs.values()),
        "parameters": dict(request.parameters),
        "headers": dict(headers),  # tritonclient writes into it
    }


def arrays(answer: Any, request: Request) -> dict[str, Array]:
    """Return the outputs that `request` asked for out of tritonclient's `InferResult`.

    Raises:
        ServerError: one is missing or cannot be read.
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
    """Read an output out of shared memory.

    Args:
        output: what the answer says of it: JSON over HTTP, a message over gRPC.
        place: where it was to go.
    """
    from tritonclient.utils import triton_to_np_dtype  # noqa: PLC0415

    datatype, shape = (output[k] if isinstance(output, dict) else getattr(output, k) for k in ("datatype", "shape"))
    return place.read(triton_to_np_dtype(datatype), shape)
