"""What only `AsyncClient` can do: many requests at once in one thread, some of them cancelled."""

import asyncio
import socket

import numpy as np
import pytest
from fake_triton import SCHEMES
from pictures import picture

from m2f.contract import STRUCTURED_OUTPUTS
from m2f_client import AsyncClient, Client, Timeout


@SCHEMES
def test_cancelling_ends_at_once_and_the_client_goes_on(scheme):
    async def run(listener):
        async with AsyncClient(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", timeout=None) as client:
            task = asyncio.create_task(client.predict(b"x"))
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)  # the request is on its way
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(Timeout):
                await client.predict(b"x", timeout=0.05)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        asyncio.run(run(silent))


@pytest.mark.server
@SCHEMES
def test_many_at_once_and_some_cancelled(server, scheme):
    url = f"{scheme}://{ {'http': server.http_url, 'grpc': server.grpc_url}[scheme] }"
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
