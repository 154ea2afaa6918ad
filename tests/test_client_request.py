"""Every request has an id, and whatever goes wrong with it says which one it was."""

import asyncio

import pytest
from pictures import encode, photo

from m2f_client import AsyncClient, Client, InvalidRequest, ServerError, ServerUnavailable, Timeout
from m2f_client.client_errors import ClientError
from m2f_client.fake import FakeTransport

IMAGE = encode(photo())


def failing(error):
    def handler(_request):
        raise error

    return FakeTransport(handler)


def predict(fake):
    with Client(transport=fake) as client:
        client.predict(IMAGE)


def predict_async(fake):
    async def run():
        async with AsyncClient(transport=fake) as client:
            await client.predict(IMAGE)

    asyncio.run(run())


@pytest.mark.parametrize("call", [predict, predict_async])
@pytest.mark.parametrize("kind", [InvalidRequest, ServerUnavailable, ServerError, Timeout])
def test_an_error_has_the_id_of_its_request(call, kind):
    fake = failing(kind("what was wrong"))
    with pytest.raises(kind) as error:
        call(fake)
    assert error.value.request_id == fake.requests[0].id
    ending = f" (request id {fake.requests[0].id})" if kind in (ServerError, Timeout) else ""
    assert str(error.value) == "what was wrong" + ending


def test_no_two_requests_have_the_same_id():
    fake = failing(InvalidRequest("no"))
    for _ in range(100):
        with pytest.raises(InvalidRequest):
            predict(fake)
    assert len({request.id for request in fake.requests}) == 100


@pytest.mark.parametrize("kind", [ClientError, ServerError, Timeout])
def test_an_error_without_a_request_has_no_id(kind):
    assert kind("nothing was sent").request_id is None
    assert str(kind("nothing was sent")) == "nothing was sent"
