"""`AsyncClient`: that it is `Client` with `await`, and what only it can do: many at once, and being cancelled."""

import asyncio
import inspect
import socket
import time

import numpy as np
import pytest
from pictures import picture

from m2f.contract import STRUCTURED_OUTPUTS
from m2f_client import AsyncClient, Client, InvalidRequest, ModelNotFound, ServerError, ServerUnavailable, Timeout
from m2f_client.fake import AsyncFakeTransport, FakeTransport, result_of, stacked

SCHEMES = pytest.mark.parametrize("scheme", ["grpc", "http"])


def fake(count=1, **options):
    one = result_of(np.ones((2, 3, 4)))
    return FakeTransport(lambda _: stacked([one] * count), **options)


def test_it_has_the_members_of_the_other_with_the_same_arguments():
    for name in [name for name in vars(Client) if not name.startswith("__") or name == "__init__"]:
        mine, other = (inspect.getattr_static(kind, name) for kind in (AsyncClient, Client))
        if inspect.isfunction(other):
            arguments = [
                [(p.name, p.default, p.kind) for p in inspect.signature(f).parameters.values()] for f in (mine, other)
            ]
            assert arguments[0] == arguments[1], name


def test_the_same_call_sends_the_same_request():
    sync, awaited = fake(2), fake(2)
    call = {"outputs": ("rle", "scores"), "timeout": 3, "score_threshold": np.float32(0.5), "classes": None}
    expected = Client(transport=sync).predict_batch([b"a", b"b"], **call)

    async def run():
        async with AsyncClient(transport=AsyncFakeTransport(awaited)) as client:
            return await client.predict_batch([b"a", b"b"], **call)

    got = asyncio.run(run())
    assert awaited.closed
    for mine, other in zip(awaited.requests, sync.requests, strict=True):
        assert mine.inputs["image"].tolist() == other.inputs["image"].tolist()
        assert (mine.model, mine.outputs, mine.parameters, mine.timeout) == (
            other.model,
            other.outputs,
            other.parameters,
            other.timeout,
        )
    assert [result.outputs["rle"].tolist() for result in got] == [r.outputs["rle"].tolist() for r in expected]


def test_class_names_are_read_once():
    transport = fake(config={"parameters": {"class_names": {"string_value": '["cat"]'}}})

    async def run():
        client = AsyncClient(transport=AsyncFakeTransport(transport))
        return [await client.class_names, await client.class_names]

    assert asyncio.run(run()) == [("cat",)] * 2
    assert transport.config_calls == 1


def test_somebody_elses_repository_has_no_names():
    class Bare(FakeTransport):
        def model_config(self, model, timeout):
            super().model_config(model, timeout)
            raise ModelNotFound(model)

    transport = Bare(lambda _: {})

    async def run():
        client = AsyncClient(transport=AsyncFakeTransport(transport))
        return [await client.class_names, await client.class_names]

    assert asyncio.run(run()) == [None, None]
    assert transport.config_calls == 1


def ask(url, **options):
    async def run():
        async with AsyncClient(url, **options) as client:
            return await client.predict(b"x")

    return asyncio.run(run())


@SCHEMES
def test_nobody_listens(scheme):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ServerUnavailable, match=r"\(Connection refused\); start one with: m2f serve") as caught:
            ask(url, timeout=10)
        assert url in str(caught.value)


@SCHEMES
def test_a_server_that_never_answers(scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(Timeout, match=r"within 0\.3 s"):
            ask(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", timeout=0.3)
        assert time.monotonic() - started < 3


@SCHEMES
def test_cancelling_ends_at_once_and_the_client_goes_on(scheme):
    async def run(url):
        async with AsyncClient(url, timeout=60) as client:
            task = asyncio.create_task(client.predict(b"x"))
            await asyncio.sleep(0.2)
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(Timeout):
                await client.predict(b"x", timeout=0.1)
            return time.monotonic() - started

    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert asyncio.run(run(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}")) < 3


def test_a_client_is_made_without_a_loop_and_closed_unused():
    for url in ("grpc://127.0.0.1:1", "http://127.0.0.1:1"):
        asyncio.run(AsyncClient(url).close())


@pytest.fixture(params=["grpc", "http"])
def url(request, server):
    return f"{request.param}://{server.grpc_url if request.param == 'grpc' else server.http_url}"


@pytest.mark.server
def test_many_at_once_and_some_cancelled(url):
    images = [picture(90 + i, 80, seed=i) for i in range(12)]
    with Client(url) as client:
        expected = [client.predict(image, score_threshold=0.0) for image in images]

    async def run():
        async with AsyncClient(url) as client:
            tasks = [asyncio.create_task(client.predict(image, score_threshold=0.0)) for image in images]
            await asyncio.sleep(0.02)
            for task in tasks[::3]:
                task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    for index, (got, other) in enumerate(zip(asyncio.run(run()), expected, strict=True)):
        if index % 3 == 0 and isinstance(got, asyncio.CancelledError):
            continue
        assert all(np.array_equal(got.outputs[name], other.outputs[name]) for name in STRUCTURED_OUTPUTS)


@pytest.mark.server
def test_errors_are_those_of_the_other(url):
    async def run():
        async with AsyncClient(url) as client, AsyncClient(url, model="nonsense") as other:
            with pytest.raises(InvalidRequest, match="score_treshold"):
                await client.predict(picture(40, 40), score_treshold=1)
            with pytest.raises(ModelNotFound, match="nonsense"):
                await other.predict(picture(40, 40))
            assert await client.class_names == names

    with Client(url) as client:
        names = client.class_names
    asyncio.run(run())


@pytest.mark.server
def test_the_wrong_protocol(server):
    with pytest.raises(ServerUnavailable, match="gRPC port"):
        ask(f"http://{server.grpc_url}", timeout=10)
    with pytest.raises(ServerUnavailable, match="no gRPC"):
        ask(f"grpc://{server.http_url}", timeout=10)
    with pytest.raises(ServerError, match="not a Triton server"):
        ask(f"http://{server.http_url}/elsewhere")
