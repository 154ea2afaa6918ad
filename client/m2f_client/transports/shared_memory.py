"""Large outputs through memory that client and server share: `Client(url, shared_memory=True)`.

Triton writes an output to a region of system shared memory if the request says so, and fails if the region is too
small. The size of an answer is not known beforehand, so the first answer comes over the wire. From then on each request
reserves 1.5 x the largest size seen of each output. An output that does not fit is asked for again over the wire, and
the next request reserves more.

A region belongs to one request at a time. It is used again only after a whole answer: after an error the server may
still write to it. The file's name in /dev/shm is removed as soon as the server has mapped it, so no file stays. The
server's mapping is removed by another process, `region_guard`, however the client ends.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from m2f.errors import M2FError
from m2f_client.client_errors import InvalidAddress, ModelNotFound, NoSharedMemory, ServerUnavailable, Timeout
from m2f_client.transports.address import Endpoint
from m2f_client.transports.failures import timed_out
from m2f_client.transports.of_process import OfProcess
from m2f_client.transports.protocol import Array, Connection, Deadline, Place, Request
from m2f_client.transports.region_guard import FOLDER, PREFIX, RegionGuard
from m2f_client.transports.waiting import BLOCKING, Waiting

_LEAST = 1 << 20  # bytes; smaller outputs are as fast over the wire
_ROOM = 1.5

Answer = dict[str, Array]


class Region:
    """A file in /dev/shm, mapped. Its pages are reserved: a server that writes to a full /dev/shm is killed.

    Args:
        name: name of the file, and of the region at the server.
        byte_size: length.
        folder: where the file is made.

    Raises:
        NoSharedMemory: /dev/shm is full.
    """

    def __init__(self, name: str, byte_size: int, folder: Path = FOLDER) -> None:
        self.name, self.byte_size = name, byte_size
        try:
            file = os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                os.posix_fallocate(file, 0, byte_size)
                self.memory = mmap.mmap(file, byte_size)
            finally:
                os.close(file)
        except OSError as error:
            reason = f"{folder} gives no {byte_size >> 20} MiB ({error.strerror}); a container's is set by --shm-size"
            raise NoSharedMemory(reason) from error

    def places(self, room: Mapping[str, int]) -> dict[str, Place]:
        """Return a place for each output, one after the other.

        Args:
            room: bytes by output name.
        """
        places, offset = {}, 0
        for name, byte_size in room.items():
            places[name] = Place(self.name, self.memory, offset, byte_size)
            offset += byte_size
        return places


@dataclass
class _Held:
    """What a process holds: its guard, and its regions that no request uses."""

    guard: RegionGuard | None = None
    free: list[Region] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)


class SharedMemoryTransport:
    """A connection whose large outputs come through shared memory. Safe to share between threads.

    Args:
        connection: the connection to the server.
        endpoint: the server's address.
        waiting: how the connection waits.
        folder: where files are made; /dev/shm, except in a test of a server that cannot see them.

    Raises:
        InvalidAddress: the endpoint has several servers.
    """

    def __init__(
        self, connection: Connection, endpoint: Endpoint, waiting: Waiting = BLOCKING, *, folder: Path = FOLDER
    ) -> None:
        if len(endpoint.targets) > 1:
            raise InvalidAddress(f"memory is shared with one server; {endpoint.url!r} are {len(endpoint.targets)}")
        self.url = connection.url
        self._connection = connection
        self._endpoint = endpoint
        self._waiting = waiting
        self._folder = folder
        self._room: dict[str, int] = {}  # bytes reserved by output name
        self._held = OfProcess(_Held)

    async def infer(self, request: Request) -> Answer:
        """Run the model; see `Transport.infer`.

        Raises:
            NoSharedMemory: /dev/shm is full, or the server does not accept the region.
        """
        try:
            answer = await self._infer(request, Deadline(request.timeout))
        except Timeout as error:
            raise timed_out(self.url, request.timeout) from error
        self._learn(answer)
        return answer

    async def close(self) -> None:
        """Close the connection and release all regions."""
        await self._connection.close()
        held = self._held.pop()
        if held is not None and held.guard is not None:
            await self._waiting.aside(held.guard.close)

    async def _infer(self, request: Request, deadline: Deadline) -> Answer:
        answer: Answer | None = None
        held = self._held.get()
        if held.guard is None:  # registers a small region: a refusal comes with the first request, not the second
            held.free.append(await self._region(mmap.PAGESIZE, deadline))
        if room := {name: self._room[name] for name in request.outputs if name in self._room}:
            region = await self._region(sum(room.values()), deadline)
            placed = replace(request, places=region.places(room), timeout=deadline.left())
            answer = await self._through(region, placed)
        if answer is None:
            answer = await self._connection.infer(replace(request, timeout=deadline.left()))
        return answer

    async def _region(self, byte_size: int, deadline: Deadline) -> Region:
        """Return a region that the server knows and no request uses."""
        held = self._held.get()
        with held.lock:
            while held.free:
                region = held.free.pop()
                if region.byte_size >= byte_size:
                    return region
                self._drop(region.name)
            if held.guard is None:
                held.guard = RegionGuard(self._endpoint)
        name = PREFIX + secrets.token_hex(8)
        held.guard.keep(name)
        with self._dropped_on_error(name):
            try:
                region = Region(name, byte_size, self._folder)
                with self._refusal_explained():
                    await self._connection.register_memory(name, byte_size, deadline.left())
            finally:
                (self._folder / name).unlink(missing_ok=True)
        return region

    async def _through(self, region: Region, request: Request) -> Answer | None:
        """Return the outputs; None if they do not fit, or if a restarted server does not know the region."""
        try:
            with self._dropped_on_error(region.name):
                answer = await self._connection.infer(request)
        except NoSharedMemory:
            return None
        held = self._held.get()
        with held.lock:
            held.free.append(region)
        return answer

    def _learn(self, answer: Answer) -> None:
        for name, array in answer.items():
            if array.dtype != object and array.nbytes > max(_LEAST, self._room.get(name, 0)):
                self._room[name] = -int(-array.nbytes * _ROOM // mmap.PAGESIZE) * mmap.PAGESIZE

    @contextmanager
    def _dropped_on_error(self, name: str) -> Iterator[None]:
        try:
            yield
        except BaseException:  # also when the task is cancelled
            self._drop(name)
            raise

    def _drop(self, name: str) -> None:
        if (guard := self._held.get().guard) is not None:
            guard.drop(name)

    @contextmanager
    def _refusal_explained(self) -> Iterator[None]:
        try:
            yield
        except (ServerUnavailable, ModelNotFound, Timeout):
            raise
        except M2FError as error:
            raise NoSharedMemory(f"the server at {self.url} shares no memory: {error}") from error
