"""A name server in place of this machine's: names of the test's own, whose addresses change while a client runs."""

import socket
from types import SimpleNamespace

from m2f_client.transports import servers

NAME = "m2f.test"


class NameServer:
    """Answers for NAME, in the client's process.

    Attributes:
        addresses: of NAME; none: it is not known.
        lookups: of NAME so far.
        during: called in each lookup of NAME.
        clock: seconds by the clock of lookups and rests; the test sets it.
    """

    def __init__(self, monkeypatch, *addresses):
        self.addresses, self.lookups, self.clock = list(addresses), 0, 0.0
        self.during = lambda: None
        self._others = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)
        monkeypatch.setattr(servers, "time", SimpleNamespace(monotonic=lambda: self.clock))

    def _look_up(self, host, port, *args, **options):
        if host not in (NAME, NAME.encode()):
            return self._others(host, port, *args, **options)
        self.lookups += 1
        self.during()
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for address in self.addresses for found in self._others(address, port, *args, **options)]
