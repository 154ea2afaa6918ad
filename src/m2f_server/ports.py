"""Pick the ports of a server."""

import socket
from collections.abc import Mapping
from contextlib import ExitStack

from m2f_server.serve_errors import PortTakenError


def pick_ports(*, hosts: Mapping[str, str], ports: Mapping[str, int]) -> dict[str, int]:
    """Return a free port for each protocol.

    Args:
        hosts: IPv4 address to listen on by protocol.
        ports: requested port by protocol; 0 requests any free port.

    Raises:
        PortTakenError: a port cannot be listened on, or two protocols request the same port.
    """
    picked: dict[str, int] = {}
    with ExitStack() as held:  # all sockets are open at once, so that no two get the same port
        for protocol, port in ports.items():
            host = hosts[protocol]
            if port in picked.values():
                raise PortTakenError(protocol=protocol, host=host, port=port, reason="asked for twice")
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            if port:  # as Triton: connections of a server that has just ended do not count
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise PortTakenError(protocol=protocol, host=host, port=port, reason=reason) from error
            picked[protocol] = probe.getsockname()[1]
    return picked
