"""Every named kind of bad input against the real server: a right answer or a refusal that says why, and no harm."""

import re

import numpy as np
import pytest
from bad_bodies import GRPC, HTTP
from bad_images import FILES
from bad_inputs import PARAMETERS, TENSORS, Request
from bad_structures import SHAPES
from conftest import IMAGES
from harm import Harm
from kserve import connect, image_input
from wire import GrpcWire, HttpWire, Post

from m2f.contract import PUBLIC_MODEL

pytestmark = pytest.mark.server

REQUESTS = {**TENSORS, **PARAMETERS}


@pytest.fixture(scope="module", autouse=True)
def unharmed(server):
    """The same processes answer the same image alike, before and after."""
    harm = Harm(server)
    triton, image = connect(server, "grpc"), image_input(IMAGES[0].read_bytes())
    before = triton.infer(PUBLIC_MODEL, image)
    yield
    after = triton.infer(PUBLIC_MODEL, image)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    assert harm.died() == []


@pytest.fixture(scope="module")
def http_wire(server):
    opened = HttpWire(server)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def grpc_wire(server):
    opened = GrpcWire(server)
    yield opened
    opened.close()


def check(answer, reason):
    """An error is for the client, says why, and fits into the 8 kB that gRPC has for it."""
    if reason is None:
        assert answer.accepted, answer
    else:
        assert answer.refused, answer
        assert re.search(reason, answer.message), answer
        assert len(answer.message) < 8192


def test_there_are_more_than_sixty_kinds():
    assert len(FILES) + len(REQUESTS) + len(HTTP) + len(GRPC) >= 60


@pytest.mark.parametrize("name", FILES)
def test_a_kind_of_file(http_wire, grpc_wire, name):
    """Each over one protocol, in turn: the server decodes a file alike, whatever brought it."""
    request = Request(PUBLIC_MODEL, image_input(FILES[name].data), FILES[name].reason)
    over_http = list(FILES).index(name) % 2
    check(http_wire.send(request.post()) if over_http else grpc_wire.send(request.message()), request.reason)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_kind_over_both_protocols(http_wire, grpc_wire, name):
    request = REQUESTS[name]
    check(http_wire.send(request.post()), request.reason)
    check(grpc_wire.send(request.message()), request.reason)


@pytest.mark.parametrize("name", HTTP)
def test_a_kind_of_http(http_wire, name):
    check(http_wire.send(HTTP[name].sent), HTTP[name].reason)


@pytest.mark.parametrize("name", GRPC)
def test_a_kind_of_grpc(grpc_wire, name):
    check(grpc_wire.send(GRPC[name].sent), GRPC[name].reason)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_wraps(http_wire, grpc_wire, name):
    """The model has a fixed size, so 2.51 compares the sides one by one, not their product; of rows it sees 32 bits."""
    sent, _ = SHAPES[name]
    answer = (http_wire if isinstance(sent, Post) else grpc_wire).send(sent)
    assert answer.refused or (answer.accepted and " rows" in name), answer
