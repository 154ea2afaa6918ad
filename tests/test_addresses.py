"""Addresses to listen on: what `--host` may say, and how an address is written."""

import errno
import socket

import pytest

from m2f_server import AddressError, PortTakenError
from m2f_server.addresses import reachable, resolve, with_port
from m2f_server.ports import bind, pick_ports


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::", "::"),
        ("0.0.0.0", "0.0.0.0"),
        ("localhost", "127.0.0.1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    ],
)
def test_a_host_is_an_address(host, address):
    assert resolve(host, option="--host") == address


@pytest.mark.parametrize(
    "host",
    ["", "nosuch.invalid", "127.0.0.1:8000", "http://127.0.0.1", "[::1", "[::1]:80", 70 * "a", "a\0b", "1.2.3.4.5"],
)
def test_a_host_without_an_address_is_named(host):
    with pytest.raises(AddressError) as caught:
        resolve(host, option="--monitor-host")
    assert str(caught.value) == f"--monitor-host {host!r}: neither an IP address nor a name that has one"


def test_a_link_local_address_is_refused():
    with pytest.raises(AddressError, match=r"--host fe80::1: Triton cannot listen on a link-local address"):
        resolve("fe80::1", option="--host")


def test_a_name_with_both_kinds_of_addresses_is_its_ipv4_address(monkeypatch):
    both = [(socket.AF_INET6, 1, 6, "", ("fd00::2", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("10.0.0.2", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert resolve("both", option="--host") == "10.0.0.2"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both[:1])
    assert resolve("newer", option="--host") == "fd00::2"


@pytest.mark.parametrize(
    ("address", "url"),
    [("0.0.0.0", "127.0.0.1:80"), ("::", "[::1]:80"), ("10.0.0.2", "10.0.0.2:80"), ("fd00::2", "[fd00::2]:80")],
)
def test_how_this_machine_reaches_it(address, url):
    assert with_port(reachable(address), 80) == url


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_is_free_taken_or_asked_for_twice(host):
    hosts = dict.fromkeys(("http", "grpc"), host)
    ports = pick_ports(hosts=hosts, ports={"http": 0, "grpc": 0})
    assert len(set(ports.values())) == 2
    with pytest.raises(PortTakenError, match="asked for twice"):
        pick_ports(hosts=hosts, ports=dict.fromkeys(hosts, ports["http"]))
    with bind("health", host, 0) as taken:
        taken.listen()
        with pytest.raises(PortTakenError, match=f"grpc port .* on {host}: address already in use"):
            pick_ports(hosts=hosts, ports={"http": 0, "grpc": taken.getsockname()[1]})


def test_all_addresses_are_those_of_ipv4_too():
    with bind("health", "::", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(PortTakenError):
            bind("http", "127.0.0.1", port)


@pytest.mark.parametrize(("protocol", "option"), [("grpc", "--host"), ("metrics", "--monitor-host")])
@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_of_another_machine(protocol, option, host):
    with pytest.raises(AddressError) as caught:
        bind(protocol, host, 0)
    assert str(caught.value) == f"{option} {host}: this machine has no such address"


def test_a_machine_without_ipv6(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(AddressError, match="--host ::1: this machine has no such address"):
        bind("http", "::1", 0)


def test_a_privileged_port(monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(PortTakenError, match=r"http port 80 on 127\.0\.0\.1: permission denied"):
        bind("http", "127.0.0.1", 80)
