"""Answer short HTTP requests from one thread, whatever else is on the port.

A thread for each connection, as in `http.server`, lets slow clients take all threads and files. Here a connection costs
a file only. There is a cap on connections and a deadline for each. At the cap a new connection takes the place of the
oldest one: a probe sends its request at once, so it is answered before it is the oldest.
"""

import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_CONNECTIONS = 128
DEADLINE_S = 5.0  # from the connection to the end of the answer
_MOST_BYTES = 8192  # of a request's head; more is not read
_END = re.compile(rb"\r?\n\r?\n")  # of a request's head
_AT_ONCE = 16  # connections accepted before requests are read: far fewer than the cap
_BACKLOG = 4096  # connections that wait in the kernel; a client that finds no room there tries again after 1 s
_TICK_S = 0.1  # between two looks at the deadlines


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    deadline: float
    request: bytearray = field(default_factory=bytearray)
    answer: bytes = b""


class Responder:
    """Answers requests.

    Args:
        bound: socket that is bound to the address to listen on. `run` closes it.
        answer: returns the bytes of the answer to a request's head, at once.
    """

    def __init__(self, bound: socket.socket, answer: Callable[[bytes], bytes]) -> None:
        self._listener = bound
        self._answer = answer
        self._selector = selectors.DefaultSelector()
        self._open: dict[_Connection, None] = {}  # oldest first
        self._stopped = threading.Event()
        bound.listen(_BACKLOG)
        bound.setblocking(False)
        self._selector.register(bound, selectors.EVENT_READ)

    def run(self) -> None:
        """Answer requests until `stop` is called."""
        with self._listener, self._selector:
            while not self._stopped.is_set():
                for key, _ in self._selector.select(_TICK_S):
                    if key.data is not None:
                        self._advance(key.data)
                self._close_late()
                self._accept()
            while self._open:
                self._close_oldest()

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stopped.set()

    def _accept(self) -> None:
        for number in range(_AT_ONCE):
            try:
                accepted, _ = self._listener.accept()
                self._add(accepted)
            except BlockingIOError:
                return
            except OSError:  # out of files or memory
                if number == 0:  # else those just accepted are read first
                    self._make_room()
                return

    def _add(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        connection = _Connection(accepted, time.monotonic() + DEADLINE_S)
        self._selector.register(accepted, selectors.EVENT_READ, connection)
        self._open[connection] = None
        if len(self._open) > MOST_CONNECTIONS:
            self._close_oldest()

    def _make_room(self) -> None:
        if self._open:
            self._close_oldest()
        else:
            time.sleep(_TICK_S)

    def _advance(self, connection: _Connection) -> None:
        """Read or write what the socket has or takes now."""
        try:
            if connection.answer:
                self._write(connection)
            else:
                self._read(connection)
        except BlockingIOError:
            return
        except OSError:  # the client has hung up
            self._close(connection)

    def _read(self, connection: _Connection) -> None:
        received = connection.socket.recv(_MOST_BYTES)
        connection.request += received
        if not received:
            self._close(connection)
        elif _END.search(connection.request) or len(connection.request) >= _MOST_BYTES:
            connection.answer = self._answer(bytes(connection.request))
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
            self._write(connection)

    def _write(self, connection: _Connection) -> None:
        connection.answer = connection.answer[connection.socket.send(connection.answer) :]
        if not connection.answer:
            connection.socket.shutdown(socket.SHUT_WR)
            self._close(connection)

    def _close_late(self) -> None:
        while self._open and next(iter(self._open)).deadline < time.monotonic():
            self._close_oldest()

    def _close_oldest(self) -> None:
        self._close(next(iter(self._open)))

    def _close(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        del self._open[connection]
