"""One name with several addresses: all are used, and they may change while a client runs."""

import contextlib
import threading

import pytest
from fake_triton import KINDS, SCHEMES, ask, ask_once, fake_triton, predict
from name_server import NAME, NameServer

from m2f_client import ModelNotFound, ServerUnavailable

pytestmark = [KINDS, SCHEMES]
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@pytest.fixture
def names(monkeypatch):
    return NameServer(monkeypatch, *HOSTS[:2])


@contextlib.contextmanager
def replicas(scheme, *answers):
    """Servers on one port of several addresses, and the address of all by their name."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(fake_triton(scheme, answers[0]))]
        port = int(servers[0].address.rpartition(":")[2])
        for host, answer in zip(HOSTS[1:], answers[1:], strict=False):
            servers.append(stack.enter_context(fake_triton(scheme, answer, host, port)))
        yield f"{scheme}://{NAME}:{port}", servers


def until_all_answer(servers, then=()):
    """Calls until each of some servers has answered, and more."""
    before = [server.calls for server in servers]
    while any(server.calls == count for server, count in zip(servers, before, strict=True)):
        yield predict
    yield from then


def test_all_addresses_are_used(kind, scheme, names):
    with replicas(scheme, "ok", "ok") as (url, servers):
        assert all(len(result) == 1 for result in ask(kind, until_all_answer(servers), url))
    assert names.lookups == 1  # by a clock that stands still


@pytest.mark.usefixtures("names")
def test_an_address_that_drains_costs_no_request(kind, scheme):
    with replicas(scheme, "unloaded", "ok") as (url, servers):
        calls = until_all_answer(servers, then=[predict] * 10)
        answers = ask(kind, calls, url)
    assert all(len(result) == 1 for result in answers)
    assert servers[1].calls == len(answers)  # none is answered twice


@pytest.mark.usefixtures("names")
def test_a_request_is_asked_once_of_each_address_that_drains(kind, scheme):
    with replicas(scheme, "unloaded", "unloaded") as (url, servers):
        with pytest.raises(ServerUnavailable, match="no available versions"):
            ask_once(kind, predict, url)
        again = 1 if scheme == "grpc" else 0  # by the channel of all, which does not say who has answered
        assert sum(server.calls for server in servers) == 2 + again


def test_an_address_that_comes_or_goes(kind, scheme, names):
    """The one that is gone still answers, so only the name says that it is gone."""
    with replicas(scheme, "ok", "ok", "ok") as (url, servers):
        first, _, third = servers

        def calls():
            yield from until_all_answer(servers[:2])
            assert third.calls == 0
            names.addresses = list(HOSTS[1:])
            names.clock += 1
            yield from until_all_answer(servers[1:])
            counts.append(first.calls)
            yield from until_all_answer(servers[1:], then=[predict] * 10)

        counts = []
        assert all(len(result) == 1 for result in ask(kind, calls(), url))
        assert first.calls == counts[0]


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"]], ids=["unknown", "slow"])
def test_a_name_server_that_fails_takes_nothing_away(kind, scheme, names, addresses):
    slow = threading.Event()
    with replicas(scheme, "ok", "ok") as (url, servers):

        def calls():
            yield from until_all_answer(servers)
            names.addresses, names.clock = addresses, names.clock + 1
            names.during = slow.wait if addresses else names.during
            yield from until_all_answer(servers)
            slow.set()

        assert all(len(result) == 1 for result in ask(kind, calls(), url))
        assert names.lookups == 2


def test_a_name_that_is_not_known(kind, scheme, names):
    names.addresses = []
    with pytest.raises(ServerUnavailable, match=f"at {scheme}://{NAME}:1 "):
        ask_once(kind, predict, f"{scheme}://{NAME}:1", timeout=5)


@pytest.mark.usefixtures("names")
def test_a_name_with_an_address_that_nobody_listens_on(kind, scheme):
    with replicas(scheme, "ok") as (url, _):
        assert all(len(result) == 1 for result in ask(kind, [predict] * 4, url))


@pytest.mark.usefixtures("names")
def test_a_model_that_is_not_there_is_asked_for_once(kind, scheme):
    with replicas(scheme, "unknown", "unknown") as (url, servers):
        with pytest.raises(ModelNotFound):
            ask_once(kind, predict, url)
        assert sum(server.calls for server in servers) == 1
