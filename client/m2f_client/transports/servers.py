"""The servers of a client: every address of every name, looked up again while the client is used.

Behind a name servers come and go: a rolling update replaces them, and an autoscaler adds some. A name server that fails
takes nothing away: the addresses found before stay in use.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from m2f_client.transports.address import Endpoint, is_numeric
from m2f_client.transports.protocol import Deadline
from m2f_client.transports.proxies import Proxy, host_and_port, proxy_for
from m2f_client.transports.waiting import Waiting, in_thread

_LOOK_UP_AGAIN_S = 1.0  # after the last lookup, if there is a request
_PATIENCE_S = 0.1  # of a request that looks up again; a slower lookup is for later requests
_REST_S = 1.0  # of a server that failed
_LONGEST_REST_S = 30.0  # of a server that does not answer: each time that it is asked costs a request all its time


@dataclass(frozen=True, order=True)
class Server:
    """One address of a server.

    Attributes:
        target: `host:port` as the user wrote it: what a certificate is for, and a proxy is asked for.
        address: numeric `host:port`; the target if a proxy looks the name up, or if no lookup has found it.
        proxy: the proxy on the way; None without.
    """

    target: str
    address: str
    proxy: Proxy | None


class Servers:
    """The servers of an endpoint, of one process. Safe to share between threads.

    Args:
        endpoint: names the servers.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._proxies = {target: proxy_for(endpoint.scheme, target) for target in endpoint.targets}
        self._found: dict[str, list[str]] = {}  # addresses by target
        self._known: tuple[Server, ...] = ()
        self._next_at = 0.0
        if not any(self._is_looked_up(target) for target in self._proxies):
            self._look_up()
            self._next_at = math.inf

    async def current(self, waiting: Waiting, deadline: Deadline) -> tuple[Server, ...]:
        """Return the servers, IPv4 first, looked up again if the last lookup is old.

        Raises:
            TimeoutError: the first lookup takes longer than the deadline.
        """
        if not self._known or time.monotonic() >= self._next_at:
            left = deadline.left()
            patience = left if not self._known else min(_PATIENCE_S, math.inf if left is None else left)
            self._next_at = time.monotonic() + _LOOK_UP_AGAIN_S
            try:
                await waiting.aside(in_thread, self._look_up, patience)
            except TimeoutError:
                if not self._known:
                    raise
        return self._known

    def _look_up(self) -> None:
        self._next_at = math.inf  # no other lookup meanwhile, however long this one takes
        try:
            for target in self._proxies:
                if found := _addresses(target) if self._is_looked_up(target) else [target]:
                    self._found[target] = found
            servers = [
                Server(target, address, proxy)
                for target, proxy in self._proxies.items()
                for address in self._found.get(target, [target])
            ]
            self._known = tuple({server.address: server for server in servers}.values())
        finally:
            self._next_at = time.monotonic() + _LOOK_UP_AGAIN_S

    def _is_looked_up(self, target: str) -> bool:
        return self._proxies[target] is None and not is_numeric(host_and_port(target)[0])


def _addresses(target: str) -> list[str]:
    """Return the addresses of a name in an order that does not change, IPv4 first; empty if there are none now."""
    host, port = host_and_port(target)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    addresses = []
    for family, _, _, _, address in sorted(set(found)):
        number, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)  # with a zone
        addresses.append(f"[{number}]:{port}" if family == socket.AF_INET6 else f"{number}:{port}")
    return addresses


class _Rest(NamedTuple):
    """A while in which a server is asked last.

    Attributes:
        seconds: length of the while.
        until: end of the while, as `time.monotonic`.
    """

    seconds: float
    until: float


_NO_REST = _Rest(_REST_S / 2, until=-math.inf)


class Turns:
    """The order in which to ask servers that can stand in for each other: in turn. Safe between threads.

    A server that failed is asked last for 1 s. One that did not answer in time is asked last for twice as long after
    each such failure in a row.
    """

    def __init__(self) -> None:
        self._turn = count()
        self._rests: dict[Server, _Rest] = {}

    def order(self, servers: Sequence[Server]) -> list[Server]:
        """Return every server once, in the order to ask them in."""
        first = next(self._turn) % len(servers)
        now = time.monotonic()
        return sorted((*servers[first:], *servers[:first]), key=lambda server: self._rest(server).until > now)

    def failed(self, server: Server, *, in_time: bool) -> None:
        """Ask a server last for a while.

        Args:
            server: the server.
            in_time: whether the server, or the system, said at once that it takes no request.
        """
        now, last = time.monotonic(), self._rest(server)
        if last.until <= now:  # else the failure is one of several at once
            seconds = _REST_S if in_time else min(2 * last.seconds, _LONGEST_REST_S)
            self._rests[server] = _Rest(seconds, until=now + seconds)

    def answered(self, server: Server) -> None:
        """Forget the failures of a server."""
        self._rests.pop(server, None)

    def _rest(self, server: Server) -> _Rest:
        return self._rests.get(server, _NO_REST)
