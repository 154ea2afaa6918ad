"""What a Python model that runs a network needs of the library that computes the network: one call."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from m2f.errors import InputError
from m2f_backend.cores import Neighbours

LARGE = 64 << 20
"""Bytes of a graph from which on an image keeps several cores busy, and a copy of the network costs much memory."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The name and the shape of each input."""

Tensor = Any
"""An output: an array, or a tensor of the library, with `__dlpack__`, `__dlpack_device__` and `numpy()`."""


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


def on_host(tensor: Tensor) -> npt.NDArray[Any]:
    """Return an output as an array."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()  # type: ignore[no-any-return]


class ByImage:
    """A network that computes the images of a batch side by side, one in each stream (`Engine`).

    On a processor a larger batch is no faster than its images one by one, but a core for each image is: threads that
    share an image wait for each other. A single image still gets all cores.

    Several instances of a model take turns at the cores: while one waits for its last image, or hands on its answers,
    another one computes. Each then takes its share of the streams, and all of them while no other computes.

    Args:
        alone: the network that computes one image with all cores.
        busy: the network that computes an image in each stream; called from several threads at a time.
        streams: number of streams.
        instances: number of instances of the model.

    Attributes:
        streams: number of streams.
    """

    def __init__(self, alone: Engine, busy: Engine, *, streams: int, instances: int = 1) -> None:
        self._alone, self._busy, self.streams = alone, busy, streams
        self._all = ThreadPoolExecutor(streams)
        self._share = ThreadPoolExecutor(max(1, streams // instances))
        self._neighbours = Neighbours() if instances > 1 else None

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
        """Compute a batch (see `Engine.run`); the outputs of several images are arrays.

        Images that would leave half of the streams idle are computed one after another, each with all cores.
        """
        count = len(next(iter(inputs.values())))
        images = [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(count)]
        with self._neighbours.computing() if self._neighbours else nullcontext(True) as all_cores:
            found = self._on_all(images) if all_cores else list(self._share.map(self._busy.run, images))
        if count == 1:
            return found[0]
        return {name: np.concatenate([on_host(outputs[name]) for outputs in found]) for name in found[0]}

    def _on_all(self, images: list[dict[str, npt.NDArray[Any]]]) -> list[dict[str, Tensor]]:
        rest = len(images) % self.streams
        side_by_side = len(images) - rest if 2 * rest <= self.streams else len(images)
        found = list(self._all.map(self._busy.run, images[:side_by_side]))
        return [*found, *map(self._alone.run, images[side_by_side:])]


class ByShape:
    """A network that is compiled for the shapes that it sees (`Engine`).

    Compiled for a shape, a network has no arithmetic of shapes in it, and the library need not choose its kernels anew
    whenever the shape differs from that of the call before. Batches are padded to 1, 2, 4, 8, ... images, so that few
    shapes occur.

    With room left, a shape is compiled at its first use. A full cache replaces the shape that has not been used for the
    longest time, by one that has been asked for `PATIENCE` times: many shapes in turn do not compile all the time.

    Args:
        compile_for: makes the network of some shapes.
        general: the network that takes all shapes; used for those that are not compiled or do not compile.
        room: largest number of compiled shapes.
        compiler: compiles while `general` answers; None: the request that needs a shape waits for it.
    """

    PATIENCE = 5
    _REMEMBERED = 1000  # shapes that wait for room

    def __init__(
        self,
        compile_for: Callable[[Shapes], Engine],
        *,
        general: Engine,
        room: int,
        compiler: Executor | None = None,
    ) -> None:
        self._compile_for, self._general, self._room, self._compiler = compile_for, general, room, compiler
        self._compiled: OrderedDict[Shapes, Engine] = OrderedDict()
        self._asked: Counter[Shapes] = Counter()
        self._lock = Lock()  # between looking for a shape and replacing its network

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
        """Compute a batch (see `Engine.run`); the outputs of a padded batch are arrays."""
        count = len(next(iter(inputs.values())))
        size = 1 << (count - 1).bit_length()
        padded = {name: _padded(array, size) for name, array in inputs.items()}
        outputs = self._engine_for(tuple((name, array.shape) for name, array in padded.items())).run(padded)
        if size == count:
            return outputs
        return {name: on_host(tensor)[:count] for name, tensor in outputs.items()}

    def _engine_for(self, shapes: Shapes) -> Engine:
        if shapes in self._compiled:
            self._compiled.move_to_end(shapes)
            return self._compiled[shapes]
        if len(self._compiled) >= self._room:
            if len(self._asked) > self._REMEMBERED:
                self._asked.clear()
            self._asked[shapes] += 1
            if self._asked[shapes] < self.PATIENCE:
                return self._general
            del self._asked[shapes]
            with self._lock:
                self._compiled.popitem(last=False)
        self._compiled[shapes] = self._general
        if self._compiler:
            self._compiler.submit(self._compile, shapes)
            return self._general
        self._compile(shapes)
        return self._compiled[shapes]

    def _compile(self, shapes: Shapes) -> None:
        if shapes not in self._compiled:  # replaced while it waited for the compiler
            return
        with suppress(Exception):  # the library's own: a shape that the network does not take, or no memory left
            compiled = self._compile_for(shapes)
            with self._lock:
                if shapes in self._compiled:
                    self._compiled[shapes] = compiled


def _padded(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Return an array with its last image repeated until there are `size` images."""
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
