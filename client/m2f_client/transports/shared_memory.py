"""Large outputs through memory that client and server share: `Client(url, shared_memory=True)`.

Triton writes an output to a region of system shared memory where the request says so, and fails where the region is too
small. How large an answer will be nobody knows beforehand. So the first one comes over the wire; from then on there is
room for outputs of its size, and half as much again. What does not fit is asked for again, over the wire, and has room
the next time.

A region belongs to one request at a time, and is used again only after a whole answer: whatever else happens, the
server may still write to it. Its name is removed as soon as the server has it, so nothing stays in /dev/shm. The
server's own hold on it is let go by another process, `shared_memory_guard`, however the client ends.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import secrets
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any

from m2f.errors import M2FError
from m2f_client.client_errors import InvalidAddress, ModelNotFound, NoSharedMemory, ServerUnavailable, Timeout
from m2f_client.transports.address import Endpoint
from m2f_client.transports.failures import timed_out
from m2f_client.transports.protocol import Array, AsyncSharingTransport, Deadline, Place, Request, SharingTransport
from m2f_client.transports.region_guard import FOLDER, PREFIX, RegionGuard

_LEAST = 1 << 20  # bytes of an output: what is smaller is as fast over the wire
_ROOM = 1.5

Answer = dict[str, Array]
Step = Callable[[Any], Any]
"""A call of a transport: it returns the answer, or, of an asynchronous transport, what to await."""


class Region:
    """Memory with a name, its pages reserved: written to without, they end the server where /dev/shm is full.

    Args:
        name: of the file in /dev/shm, and of the region at the server.
        byte_size: length.

    Raises:
        NoSharedMemory: there is no room.
    """

    def __init__(self, name: str, byte_size: int) -> None:
        self.name, self.byte_size = name, byte_size
        try:
            file = os.open(FOLDER / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                os.posix_fallocate(file, 0, byte_size)
                self.memory = mmap.mmap(file, byte_size)
            finally:
                os.close(file)
        except OSError as error:
            reason = f"{FOLDER} gives no {byte_size >> 20} MiB ({error.strerror}); a container's is set by --shm-size"
            raise NoSharedMemory(reason) from error

    def places(self, room: Mapping[str, int]) -> dict[str, Place]:
        """Return a place for each output, one behind the other.

        Args:
            room: bytes by output name.
        """
        places, offset = {}, 0
        for name, byte_size in room.items():
            places[name] = Place(self.name, self.memory, offset, byte_size)
            offset += byte_size
        return places


class SharedMemory:
    """The regions of one client, and how large its outputs were. Safe to share between threads.

    Args:
        endpoint: the server.

    Raises:
        InvalidAddress: there are several servers.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        if len(endpoint.targets) > 1:
            raise InvalidAddress(f"memory is shared with one server; {endpoint.url!r} are {len(endpoint.targets)}")
        self._endpoint = endpoint
        self._guard: RegionGuard | None = None
        self._free: list[Region] = []
        self._room: dict[str, int] = {}
        self._lock = Lock()

    def infer(self, request: Request) -> Generator[Step, Any, Answer]:
        """Yield the calls that make up an inference, each answered by `send` or `throw`; return the outputs.

        Raises:
            NoSharedMemory: there is no room, or the server does not take the region.
        """
        try:
            answer = yield from self._infer(request, Deadline(request.timeout))
        except Timeout as error:
            raise timed_out(self._endpoint.url, request.timeout) from error
        self._learn(answer)
        return answer

    def close(self) -> None:
        """Let go of all regions."""
        with self._lock:
            self._free.clear()
            guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()

    def _infer(self, request: Request, deadline: Deadline) -> Generator[Step, Any, Answer]:
        answer: Answer | None = None
        if self._guard is None:  # a small region at once: a refusal comes with the first request, not with the second
            self._free.append((yield from self._region(mmap.PAGESIZE, deadline)))
        if room := {name: self._room[name] for name in request.outputs if name in self._room}:
            region = yield from self._region(sum(room.values()), deadline)
            placed = replace(request, places=region.places(room), timeout=deadline.left())
            answer = yield from self._through(region, placed)
        if answer is None:
            wired = replace(request, timeout=deadline.left())
            answer = yield lambda transport: transport.infer(wired)
        return answer

    def _region(self, byte_size: int, deadline: Deadline) -> Generator[Step, Any, Region]:
        """Return a region that the server knows and nobody uses."""
        with self._lock:
            while self._free:
                region = self._free.pop()
                if region.byte_size >= byte_size:
                    return region
                self._drop(region.name)
            if self._guard is None:
                self._guard = RegionGuard(self._endpoint)
        name = PREFIX + secrets.token_hex(8)
        self._guard.keep(name)
        with self._dropped_on_error(name):
            try:
                region = Region(name, byte_size)
                with self._refusal_explained():
                    yield lambda transport: transport.register_memory(name, byte_size, deadline.left())
            finally:
                (FOLDER / name).unlink(missing_ok=True)
        return region

    def _through(self, region: Region, request: Request) -> Generator[Step, Any, Answer | None]:
        """Return the outputs; None where they do not fit, or the server was started anew and has no such region."""
        try:
            with self._dropped_on_error(region.name):
                answer: Answer = yield lambda transport: transport.infer(request)
        except NoSharedMemory:
            return None
        with self._lock:
            self._free.append(region)
        return answer

    def _learn(self, answer: Answer) -> None:
        for name, array in answer.items():
            if array.dtype != object and array.nbytes > max(_LEAST, self._room.get(name, 0)):
                self._room[name] = -int(-array.nbytes * _ROOM // mmap.PAGESIZE) * mmap.PAGESIZE

    @contextmanager
    def _dropped_on_error(self, name: str) -> Generator[None]:
        try:
            yield
        except BaseException:  # a cancelled task, too
            self._drop(name)
            raise

    def _drop(self, name: str) -> None:
        if (guard := self._guard) is not None:
            guard.drop(name)

    @contextmanager
    def _refusal_explained(self) -> Generator[None]:
        try:
            yield
        except (ServerUnavailable, ModelNotFound, Timeout):
            raise
        except M2FError as error:
            raise NoSharedMemory(f"the server at {self._endpoint.url} shares no memory: {error}") from error


class SharedMemoryTransport:
    """A transport whose large outputs come through shared memory. Safe to share between threads."""

    def __init__(self, transport: SharingTransport, endpoint: Endpoint) -> None:
        self.url = transport.url
        self._memory = SharedMemory(endpoint)
        self._transport = transport

    def infer(self, request: Request) -> Answer:
        """Run the model; see `Transport.infer`."""
        steps = self._memory.infer(request)
        try:
            step = next(steps)
            while True:
                try:
                    answer = step(self._transport)
                except BaseException as error:  # raised in there
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            outputs: Answer = end.value
            return outputs

    def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""
        return self._transport.model_config(model, timeout)

    def close(self) -> None:
        """Close the connection and let go of the memory."""
        self._transport.close()
        self._memory.close()


class AsyncSharedMemoryTransport:
    """`SharedMemoryTransport`, awaited."""

    def __init__(self, transport: AsyncSharingTransport, endpoint: Endpoint) -> None:
        self.url = transport.url
        self._memory = SharedMemory(endpoint)
        self._transport = transport

    async def infer(self, request: Request) -> Answer:
        """Run the model; see `Transport.infer`."""
        steps = self._memory.infer(request)
        try:
            step = next(steps)
            while True:
                try:
                    answer = await step(self._transport)
                except BaseException as error:  # raised in there
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            outputs: Answer = end.value
            return outputs

    async def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""
        return await self._transport.model_config(model, timeout)

    async def close(self) -> None:
        """Close the connection and let go of the memory."""
        await self._transport.close()
        await asyncio.to_thread(self._memory.close)
