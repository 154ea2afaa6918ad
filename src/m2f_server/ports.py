"""Choose the ports of a server."""

import socket
from collections.abc import Mapping
from contextlib import ExitStack

from m2f_server.serve_errors import PortTakenError


def pick_ports(*, hosts: Mapping[str, str], ports: Mapping[str, int]) -> dict[str, int]:
    """Return a port for each protocol, free at this moment.

    Args:
        hosts: protocol to the IPv4 address to listen on.
        ports: protocol to the port asked for; 0 asks for any.

    Raises:
        PortTakenError: it cannot be listened on, or two protocols ask for the same one.
    """
    picked: dict[str, int] = {}
    with ExitStack() as held:  # all at once, so that no two get the same
        for protocol, port in ports.items():
            host = hosts[protocol]
            if port in picked.values():
                raise PortTakenError(protocol=protocol, host=host, port=port, reason="asked for twice")
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            if port:  # as Triton does: connections of a server that has just ended are no obstacle
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise PortTakenError(protocol=protocol, host=host, port=port, reason=reason) from error
            picked[protocol] = probe.getsockname()[1]
    return picked
