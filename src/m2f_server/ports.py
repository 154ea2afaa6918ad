"""Pick the ports of a server."""

import errno
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from m2f_server.addresses import family
from m2f_server.serve_errors import AddressError, PortTakenError

_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def pick_ports(*, hosts: Mapping[str, str], ports: Mapping[str, int]) -> dict[str, int]:
    """Return a free port for each protocol.

    Args:
        hosts: IP address to listen on by protocol.
        ports: requested port by protocol; 0 requests any free port.

    Raises:
        AddressError: this machine does not have one of the addresses.
        PortTakenError: a port cannot be listened on, or two protocols request the same port.
    """
    picked: dict[str, int] = {}
    with ExitStack() as held:  # all sockets are open at once, so that no two get the same port
        for protocol, port in ports.items():
            host = hosts[protocol]
            if port in picked.values():
                raise PortTakenError(protocol=protocol, host=host, port=port, reason="asked for twice")
            picked[protocol] = held.enter_context(bind(protocol, host, port)).getsockname()[1]
    return picked


def bind(protocol: str, host: str, port: int) -> socket.socket:
    """Return a socket that is bound as Triton's sockets are: old connections do not hold a port, and `::` takes IPv4.

    Args:
        protocol: `http`, `grpc`, `metrics` or `health`, for the message.
        host: IP address to listen on.
        port: port to listen on; 0 picks a free one.

    Raises:
        AddressError: this machine does not have the address.
        PortTakenError: the port cannot be listened on.
    """
    with ExitStack() as stack:
        try:
            bound = stack.enter_context(socket.socket(family(host), socket.SOCK_STREAM))
            if port:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if bound.family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.bind((host, port))
            # also where a free port was picked, which this option would pick among those of old connections
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError as error:
            if error.errno in _NO_SUCH_ADDRESS:
                option = "--monitor-host" if protocol in ("metrics", "health") else "--host"
                raise AddressError(f"{option} {host}: this machine has no such address") from error
            reason = (error.strerror or str(error)).lower()
            raise PortTakenError(protocol=protocol, host=host, port=port, reason=reason) from error
        stack.pop_all()
        return bound
