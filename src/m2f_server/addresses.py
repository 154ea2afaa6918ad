"""Addresses to listen on: what `--host` may say, and how an address is written."""

import ipaddress
import socket

from m2f_server.serve_errors import AddressError

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def resolve(host: str, *, option: str) -> str:
    """Return the IP address of a host.

    A name may have several addresses, and Triton listens on one. So an IPv4 address goes before an IPv6 address.

    Args:
        host: name or IP address; an IPv6 address may be in brackets.
        option: name of the option that has the host, for the message.

    Raises:
        AddressError: the host has no address, or a link-local one, on which Triton cannot listen.
    """
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: no name has such characters
        raise AddressError(f"{option} {host!r}: neither an IP address nor a name that has one") from error
    address = min((str(address[0]) for *_, address in found), key=_version)
    if _version(address) == 6 and ipaddress.ip_address(address).is_link_local:
        raise AddressError(f"{option} {host}: Triton cannot listen on a link-local address; :: is all addresses")
    return address


def reachable(address: str) -> str:
    """Return the address at which this machine reaches a server that listens on `address`."""
    return _LOOPBACK[_version(address)] if ipaddress.ip_address(address).is_unspecified else address


def with_port(address: str, port: int) -> str:
    """Return `address:port`, with an IPv6 address in brackets.

    >>> with_port("::1", 8000)
    '[::1]:8000'
    """
    return f"[{address}]:{port}" if _version(address) == 6 else f"{address}:{port}"


def family(address: str) -> socket.AddressFamily:
    """Return the address family of an IP address."""
    return socket.AF_INET6 if _version(address) == 6 else socket.AF_INET


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version
