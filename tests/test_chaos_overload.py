"""Ten times more requests than the server can answer: through the front that caps what is in flight, and without."""

import asyncio
import os
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import psutil
import pytest
from chaos_report import report
from conftest import IMAGES, ROOT
from kserve import image_input
from nginx_front import INFER
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from m2f_server import serve

pytestmark = pytest.mark.server

# all clients are one address here, and so have the caps of all
ONE_ADDRESS = {"rate=50r/s": "rate=10000r/s", "limit_conn in_flight 32": "limit_conn in_flight 64"}
FACTOR = 10


@pytest.fixture(scope="module")
def server():
    """A server on all cores but one; what else this process starts has that, as if it were another machine."""
    cores = os.sched_getaffinity(0)
    own = {min(cores)}
    os.sched_setaffinity(0, cores - own or cores)
    try:
        with serve(
            model_repository=ROOT / "model_repository", config_name="cpu", http_port=0, grpc_port=0, metrics_port=0
        ) as running:
            os.sched_setaffinity(0, own)
            yield running
    finally:
        os.sched_setaffinity(0, cores)


@dataclass
class Answers:
    """Seconds that each answer took, by status, and what was answered with 200 while requests were sent."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    good: int = 0
    lengths: Counter = field(default_factory=Counter)

    def percentile(self, status, share):
        return float(np.percentile(self.seconds[status], share)) if status in self.seconds else 0.0


def body():
    """One request in the protocol's binary form, made once: the generator must cost little."""
    image = image_input(min((path.read_bytes() for path in IMAGES), key=len))["image"]
    tensor = InferInput("image", list(image.shape), "BYTES")
    tensor.set_data_from_numpy(image)
    outputs = [InferRequestedOutput(name) for name in ("scores", "labels", "rle")]
    content, length = InferenceServerClient.generate_request_body([tensor], outputs=outputs)
    return content, {"Inference-Header-Content-Length": str(length)}


class Clients:
    """Many connections to a server or its front.

    Attributes:
        turned_away: the status that says so.
    """

    def __init__(self, address, *, turned_away, tls=None):
        self._url = f"{'https' if tls else 'http'}://{address}{INFER}"
        self._tls = tls or False
        self.turned_away = turned_away
        self._content, self._headers = body()

    async def closed(self, in_flight, seconds):
        """Keep so many in flight; returns answers a second."""
        answers, end = Answers(), time.monotonic() + seconds

        async def work(session):
            while time.monotonic() < end:
                await self._one(session, answers)

        async with self._session() as session:
            work_done = asyncio.gather(*(work(session) for _ in range(in_flight)))
            await asyncio.sleep(seconds)
            good = answers.good  # before the last ones come in
            await work_done
        assert set(answers.seconds) == {200}
        assert len(answers.lengths) == 1
        return good / seconds

    async def open(self, rate, seconds):
        """Send so many a second, whatever becomes of them."""
        answers, tasks, started = Answers(), set(), time.monotonic()
        async with self._session() as session:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
                task = asyncio.create_task(self._one(session, answers))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            goodput = answers.good / (time.monotonic() - started)
            await asyncio.gather(*tasks)
        return answers, goodput

    def _session(self):
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60))

    async def _one(self, session, answers):
        started = time.monotonic()
        async with session.post(self._url, data=self._content, headers=self._headers) as response:
            content = await response.read()
        answers.seconds.setdefault(response.status, []).append(time.monotonic() - started)
        if response.status == 200:
            answers.good += 1
            answers.lengths[len(content)] += 1  # the right answer, as far as a byte count tells


def memory(server):
    """Bytes of the server and its steps, what they share counted once."""
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes)


def through(front, folder):
    return Clients(front, turned_away=429, tls=ssl.create_default_context(cafile=folder / "ca.pem"))


def overload(server, clients, *, measure, seconds):
    """Measure the peak, overload, measure the peak again: a shared machine is not always as fast."""
    asyncio.run(clients.closed(4, 2))
    before = asyncio.run(clients.closed(8, measure))
    memory_before = memory(server)
    answers, goodput = asyncio.run(clients.open(FACTOR * before, seconds))
    grown = memory(server) - memory_before
    after = asyncio.run(clients.closed(8, measure))
    peak = (before + after) / 2
    counts = {status: len(times) for status, times in answers.seconds.items()}
    assert set(counts) == {200, clients.turned_away}, counts
    assert len(answers.lengths) == 1
    return {
        "peak before /s": round(before, 1),
        "peak after /s": round(after, 1),
        "offered /s": round(FACTOR * before),
        "answered of the peak": round(goodput / peak, 2),
        "rejections": counts[clients.turned_away],
        "rejected p99 ms": round(1e3 * answers.percentile(clients.turned_away, 99), 1),
        "answered p99 s": round(answers.percentile(200, 99), 1),
        "memory grown MB": round(grown / 1e6),
    }


def assert_stood(figures, *, answered):
    assert figures["answered of the peak"] >= answered
    assert figures["rejected p99 ms"] <= 50
    assert figures["memory grown MB"] < 500
    assert figures["peak after /s"] >= 0.9 * figures["peak before /s"]


@pytest.mark.more
def test_overload(server, make_front, certificates):
    """Every request is answered or turned away; how fast is not judged here."""
    overload(server, through(make_front(**ONE_ADDRESS), certificates), measure=2, seconds=5)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_five_minutes_of_overload(server, make_front, certificates):
    figures = overload(server, through(make_front(**ONE_ADDRESS), certificates), measure=30, seconds=300)
    print(figures)
    assert_stood(figures, answered=0.9)
    report(f"{FACTOR}x overload through the front for 5 minutes", figures)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_minute_of_overload_without_a_front(server):
    figures = overload(server, Clients(server.http_url, turned_away=503), measure=30, seconds=60)
    print(figures)
    assert_stood(figures, answered=0.6)  # to read and refuse nine of ten requests takes its share of the one processor
    report(f"{FACTOR}x overload of the server itself for a minute", figures)
