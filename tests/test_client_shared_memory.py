"""Outputs through shared memory: what goes where, what happens when it does not fit, and that nothing stays."""

import asyncio
import contextlib
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import tritonclient.http
from conftest import IMAGES, ROOT
from fake_triton import fake_triton
from PIL import Image

from m2f_client import (
    AsyncClient,
    Client,
    InvalidAddress,
    InvalidRequest,
    NoSharedMemory,
    ServerError,
    ServerUnavailable,
    Timeout,
)
from m2f_client.transports import protocol, region_guard
from m2f_client.transports.address import Endpoint
from m2f_client.transports.connect import connect
from m2f_client.transports.protocol import Request
from m2f_client.transports.region_guard import FOLDER, PREFIX, release
from m2f_client.transports.shared_memory import SharedMemoryTransport
from m2f_client.transports.waiting import AWAITING, run_blocking

NOBODY = Endpoint.parse("http://127.0.0.1:1")  # the guard finds no server, and has nothing to do
LARGE = 2 << 20  # bytes of an output
LARGEST = max(IMAGES, key=lambda path: np.prod(Image.open(path).size))  # its masks have more than 1 MiB
MASKS = ("num_instances", "masks")
SCHEMES = pytest.mark.parametrize("scheme", ["grpc", "http"])


class FakeServer:
    """Writes to shared memory as Triton does."""

    url = "fake://server"

    def __init__(self):
        self.regions, self.log, self.size, self.failures, self.answer = {}, [], LARGE, [], None
        self.timeouts = []

    async def register_memory(self, name, byte_size, timeout):
        self.timeouts.append(timeout)
        if self.failures:
            raise self.failures.pop()
        with (FOLDER / name).open("r+b") as file:
            self.regions[name] = mmap.mmap(file.fileno(), byte_size)
        self.log.append(("register", byte_size))

    async def infer(self, request):
        self.timeouts.append(request.timeout)
        self.log.append(("infer", {name: place.byte_size for name, place in request.places.items()}))
        if self.failures:
            raise self.failures.pop()
        seed = int(request.parameters["seed"])
        answer = {name: np.full((1, self.size // 4), seed, np.int32) for name in request.outputs}
        if self.answer is not None:
            return dict.fromkeys(request.outputs, self.answer)
        for name, place in request.places.items():
            if place.region not in self.regions:
                raise NoSharedMemory(f"Unable to find shared memory region: '{place.region}'")
            if answer[name].nbytes > place.byte_size:
                raise NoSharedMemory("shared memory size specified with the request")
            data = answer[name].tobytes()
            self.regions[place.region][place.offset : place.offset + len(data)] = data
            answer[name] = place.read(np.int32, answer[name].shape)
        return answer

    async def close(self):
        pass

    @property
    def wired(self):
        """How many requests had nothing in shared memory."""
        return self.log.count(("infer", {}))


class Suspending(FakeServer):
    """For an event loop: an inference lets other tasks run."""

    async def infer(self, request):
        answer = await super().infer(request)
        await asyncio.sleep(0.01)
        return answer


@pytest.fixture
def fake():
    return FakeServer()


@pytest.fixture
def transport(fake):
    transport = SharedMemoryTransport(fake, NOBODY)
    yield transport
    run_blocking(transport.close())


def infer(transport, *arguments, **options):
    return run_blocking(transport.infer(request(*arguments, **options)))


def request(seed=1, *outputs, timeout=60.0):
    return Request("m", {}, outputs or ("masks",), {"seed": seed}, timeout)


def values(answer):
    return {name: set(array.flat) for name, array in answer.items()}


OF_OTHERS = {path.name for path in FOLDER.iterdir()}


def left_over():
    return [path.name for path in FOLDER.iterdir() if path.name.startswith(PREFIX) and path.name not in OF_OTHERS]


def test_the_first_answer_comes_by_wire_and_the_next_through_memory(fake, transport):
    for seed in range(4):
        assert values(infer(transport, seed, "masks", "panoptic")) == {"masks": {seed}, "panoptic": {seed}}
    room = LARGE * 3 // 2
    assert fake.log == [
        ("register", mmap.PAGESIZE),
        ("infer", {}),
        ("register", 2 * room),
        *[("infer", {"masks": room, "panoptic": room})] * 3,
    ]


def test_answers_are_copies(transport):
    infer(transport)
    first, second = infer(transport, 5), infer(transport, 6)
    assert values(first) == {"masks": {5}}
    assert values(second) == {"masks": {6}}
    first["masks"][:] = 7
    assert values(second) == {"masks": {6}}


def test_small_outputs_stay_on_the_wire(fake, transport):
    fake.size = 1 << 20
    for seed in range(3):
        infer(transport, seed)
    assert fake.wired == 3


def test_what_does_not_fit_comes_by_wire_and_fits_the_next_time(fake, transport):
    infer(transport)
    fake.size = 2 * LARGE
    assert values(infer(transport, 8)) == {"masks": {8}}
    assert fake.wired == 2
    assert values(infer(transport, 9)) == {"masks": {9}}
    fake.size = LARGE  # a smaller one fits where a larger one did
    assert infer(transport, 10)["masks"].nbytes == LARGE
    assert fake.wired == 2


def test_a_server_that_was_started_anew(fake, transport):
    for _ in range(2):
        infer(transport)
    fake.regions.clear()
    assert values(infer(transport, 3)) == {"masks": {3}}
    assert values(infer(transport, 4)) == {"masks": {4}}
    assert fake.wired == 2
    assert len(fake.regions) == 1


@pytest.mark.parametrize("error", [Timeout, ServerUnavailable, InvalidRequest, ServerError])
def test_a_region_is_used_again_only_after_a_whole_answer(fake, transport, error):
    """After anything else the server may still write to it."""
    for _ in range(2):
        infer(transport)
    before = set(fake.regions)
    fake.failures.append(error("no"))
    with pytest.raises(error):
        infer(transport)
    assert values(infer(transport, 3)) == {"masks": {3}}
    assert len(set(fake.regions) - before) == 1


def test_a_timeout_says_how_much_the_request_had(fake, transport):
    infer(transport)
    fake.failures.append(Timeout("no answer within 0.4997 s"))
    with pytest.raises(Timeout, match=r"within 0\.5 s"):
        infer(transport, timeout=0.5)


def test_each_wait_of_a_request_gets_the_time_that_is_left(fake, transport, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: float(len(fake.timeouts)))  # each wait takes a second
    monkeypatch.setattr(protocol, "time", clock)
    infer(transport, timeout=60.0)
    assert fake.timeouts == [60.0, 59.0]  # a small region, the answer
    fake.size *= 2
    infer(transport, timeout=60.0)
    assert fake.timeouts[2:] == [60.0, 59.0, 58.0]  # a region, an answer that does not fit, the answer


def test_each_request_in_flight_has_a_region_of_its_own():
    async def run():
        fake = Suspending()
        transport = SharedMemoryTransport(fake, NOBODY, AWAITING)
        await transport.infer(request())
        answers = await asyncio.gather(*(transport.infer(request(seed)) for seed in range(5)))
        assert [values(answer) for answer in answers] == [{"masks": {seed}} for seed in range(5)]
        count = len(fake.regions)
        await asyncio.gather(*(transport.infer(request(seed)) for seed in range(5)))
        assert len(fake.regions) == count  # used again
        await transport.close()

    asyncio.run(run())


def test_the_region_of_a_cancelled_request_is_not_used_again():
    async def run():
        fake = Suspending()
        transport = SharedMemoryTransport(fake, NOBODY, AWAITING)
        for _ in range(2):
            await transport.infer(request())
        before = set(fake.regions)
        task = asyncio.create_task(transport.infer(request()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await transport.infer(request())
        assert len(set(fake.regions) - before) == 1
        await transport.close()

    asyncio.run(run())


def test_the_region_of_a_cancelled_request_is_let_go_while_the_client_is_open():
    async def run(guarded):
        fake = Suspending()
        transport = SharedMemoryTransport(fake, Endpoint.parse(guarded.url), AWAITING)
        for _ in range(2):
            await transport.infer(request())
        used = max(fake.regions, key=lambda name: fake.regions[name].size())
        task = asyncio.create_task(transport.infer(request()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until, lambda: f"/v2/systemsharedmemory/region/{used}/unregister" in guarded.paths)
        await transport.close()

    with fake_triton("http") as guarded:
        asyncio.run(run(guarded))


def test_a_forked_process_has_regions_of_its_own(fake, transport, monkeypatch):
    """Two processes that wait for answers in the same memory would get each other's."""
    for _ in range(2):
        infer(transport)
    before = set(fake.regions)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert values(infer(transport, 7)) == {"masks": {7}}
    assert values(infer(transport, 8)) == {"masks": {8}}
    run_blocking(transport.close())
    monkeypatch.undo()
    after = set(fake.regions) - before
    assert len(after) == 2  # a small one, and one for answers
    assert values(infer(transport, 9)) == {"masks": {9}}
    assert set(fake.regions) == before | after


def test_no_room(fake, transport):
    """Pages are reserved when a region is made: a full /dev/shm would end the server at its first write."""
    fake.answer = np.broadcast_to(np.int32(0), (1 << 48,))
    infer(transport)
    with pytest.raises(NoSharedMemory, match=r"/dev/shm gives no 1610612736 MiB \(.*\); a container's is set by"):
        infer(transport)
    assert not left_over()


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("the server wants a secret for this: headers={'x': ...}"),
        ServerError("Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."),
    ],
)
def test_a_refusal_comes_with_the_first_request(fake, transport, error):
    fake.failures.append(error)
    with pytest.raises(NoSharedMemory, match=f"shares no memory: {re.escape(str(error))}"):
        infer(transport)
    assert not left_over()


def test_several_servers():
    with pytest.raises(InvalidAddress, match=r"one server; 'grpc://\S+' are 2"):
        Client("grpc://127.0.0.1:1,127.0.0.1:2", shared_memory=True)


def test_a_region_in_use_is_asked_for_again():
    class Busy:
        calls = 0

        async def unregister_memory(self, *_):
            self.calls += 1
            if self.calls < 4:
                raise NoSharedMemory("it is currently in use")

    busy = Busy()
    release(busy, PREFIX + "none")
    assert busy.calls == 4


def test_a_guard_that_was_killed(transport):
    before = guards()
    infer(transport)
    while not (started := guards() - before):  # a process that has just begun has no command line yet
        time.sleep(0.01)
    for guard in started:
        guard.kill()
        guard.wait()
    with pytest.raises(NoSharedMemory, match="open another client"):
        infer(transport)


def guards():
    """The processes that release regions for this one."""
    return {child for child in psutil.Process().children() if region_guard.__name__ in child.cmdline()}


# Against the real server


def url_of(server, scheme):
    return f"{scheme}://{ {'http': server.http_url, 'grpc': server.grpc_url}[scheme] }"


def client_of(server, scheme, kind=Client, **options):
    return kind(url_of(server, scheme), shared_memory=True, **{"headers": server.access.headers, **options})


def regions(server):
    """The clients' regions that a server holds: name -> bytes."""
    triton = tritonclient.http.InferenceServerClient(server.http_url)
    status = triton.get_system_shared_memory_status(headers=dict(server.access.headers))
    return {one["name"]: one["byte_size"] for one in status if one["name"].startswith(PREFIX)}


def answers(client):
    with contextlib.suppress(ServerUnavailable):
        return len(client.predict(LARGEST, outputs=MASKS)) > 0
    return False


def wait_until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.server
@SCHEMES
def test_masks_come_through_memory_and_nothing_stays(server, scheme):
    with client_of(server, scheme) as client, Client(client.url) as wire:
        expected = wire.predict(LARGEST, outputs=MASKS).masks
        for _ in range(3):
            assert np.array_equal(client.predict(LARGEST, outputs=MASKS).masks, expected)
        assert max(regions(server).values()) > expected.nbytes
        assert not left_over()
        assert client.predict(LARGEST, outputs=MASKS, score_threshold=1.0).masks.size == 0  # nothing to write
    wait_until(lambda: not regions(server))


@pytest.mark.server
@SCHEMES
def test_threads(server, scheme):
    with client_of(server, scheme) as client, ThreadPoolExecutor(4) as pool:
        alone = [client.predict(image, outputs=MASKS).masks for image in IMAGES]
        for _ in range(2):
            together = pool.map(lambda image: client.predict(image, outputs=MASKS).masks, IMAGES)
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.server
@SCHEMES
def test_a_region_that_is_given_up_is_let_go_at_once(server, scheme):
    with client_of(server, scheme) as client:
        for _ in range(2):
            client.predict(LARGEST, outputs=MASKS)
        held = regions(server)
        used = max(held, key=held.get)  # the other is small, and on its way out
        with pytest.raises(Timeout):
            client.predict(LARGEST, outputs=MASKS, timeout=0.002)
        wait_until(lambda: used not in regions(server))
        assert client.predict(LARGEST, outputs=MASKS).masks.any()


@pytest.mark.server
@SCHEMES
def test_without_the_secret(server, scheme):
    with (
        client_of(server, scheme, headers=None) as client,
        pytest.raises(NoSharedMemory, match=r"shares no memory: .* headers={'triton-grpc-protocol-\S+': \.\.\.}"),
    ):
        client.predict(IMAGES[0])
    assert not left_over()


@pytest.mark.server
@SCHEMES
def test_a_server_that_cannot_see_the_memory(server, scheme, tmp_path):
    """As on another host: the server does not look where the client makes files."""
    endpoint = Endpoint.parse(url_of(server, scheme), server.access.headers)
    transport = SharedMemoryTransport(connect(endpoint), endpoint, folder=tmp_path)
    with Client(transport=transport) as client, pytest.raises(NoSharedMemory, match="Unable to open shared memory"):
        client.predict(IMAGES[0])


ENDLESS = textwrap.dedent("""
    import json, sys
    from concurrent.futures import ThreadPoolExecutor
    from m2f_client import Client

    url, headers, image = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    client = Client(url, headers=headers, shared_memory=True)

    def work(_):
        while True:
            client.predict(image, outputs=("num_instances", "masks"))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
""")


@pytest.mark.server
@SCHEMES
def test_kill_9_leaves_nothing(server, scheme):
    """The client is killed, with its process group, while requests are in flight; the server lives on."""
    url = url_of(server, scheme)
    command = [sys.executable, "-c", ENDLESS, url, json.dumps(server.access.headers), str(LARGEST)]
    with subprocess.Popen(command, start_new_session=True) as running:
        wait_until(lambda: sum(size > mmap.PAGESIZE for size in regions(server).values()) >= 3)
        os.killpg(running.pid, signal.SIGKILL)
    wait_until(lambda: not regions(server))
    assert not left_over()
    with Client(f"http://{server.http_url}") as client:
        assert len(client.predict(IMAGES[0])) > 0


@pytest.mark.server
@pytest.mark.more
def test_a_real_server_that_is_started_anew(tmp_path):
    from m2f_server import serve

    (tmp_path / "token").write_text("a-secret-for-both-servers")
    options = {"config_name": "cpu", "admin_token_file": tmp_path / "token"}
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with contextlib.ExitStack() as stack:
        with serve(model_repository=ROOT / "model_repository", **options, **ports) as first:
            ports = {f"{name}_port": port for name, port in first.ports.items()}
            client = stack.enter_context(client_of(first, "grpc"))
            expected = [client.predict(LARGEST, outputs=MASKS).masks for _ in range(2)][1]
        with serve(model_repository=ROOT / "model_repository", **options, **ports) as second:
            wait_until(lambda: answers(client))  # gRPC connects again within 5 s
            for _ in range(2):
                assert np.array_equal(client.predict(LARGEST, outputs=MASKS).masks, expected)
            assert max(regions(second).values()) > expected.nbytes


@pytest.mark.server
@SCHEMES
def test_async(server, scheme):
    async def run():
        async with client_of(server, scheme, AsyncClient) as client:
            for _ in range(2):
                results = await asyncio.gather(*(client.predict(image, outputs=MASKS) for image in IMAGES))
            assert not left_over()
            assert regions(server)
            return results

    with Client(f"http://{server.http_url}") as wire:
        for image, result in zip(IMAGES, asyncio.run(run()), strict=True):
            assert np.array_equal(wire.predict(image, outputs=MASKS).masks, result.masks)
    wait_until(lambda: not regions(server))
