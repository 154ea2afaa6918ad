"""An HTTP server of which each answer's bytes are given, for answers that no server library would send."""

import contextlib
import socket
import struct
import threading
import time

RESET = object()
"""In an answer: the connection ends with a reset."""

NAMES = b'{"outputs": [{"name": "class_names", "datatype": "BYTES", "shape": [1, 1], "data": ["[\\"cat\\"]"]}]}'
"""The body of an answer with class names; the answer is `whole(NAMES)`."""


def whole(body, status="200 OK", *headers):
    """An answer with a body."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


class RawServer:
    """Answers each request on a connection with the next of `answers`, and closes the connection after the last.

    Args:
        answer: number of the connection, from 0 -> the answers on it; called in a thread of the connection's own. An
            answer has bytes, RESET, and seconds to wait after each byte of the rest.
        host: address of this machine, IPv4 or IPv6.

    Attributes:
        connections, requests: so far.
        hosts: the header `Host` of each request so far.
        gone: set when a client has hung up in the middle of an answer.
    """

    def __init__(self, answer, host="127.0.0.1"):
        self.connections = self.requests = 0
        self.hosts = []
        self.gone = threading.Event()
        self._answer = answer
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.address}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection, self.connections), daemon=True).start()
                self.connections += 1

    def _serve(self, connection, number):
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as file:
            for answer in self._answer(number):
                length = 0
                while (line := file.readline()) != b"\r\n":
                    if not line:
                        return
                    name, _, value = line.decode().partition(":")
                    if name.lower() == "content-length":
                        length = int(value)
                    if name.lower() == "host":
                        self.hosts.append(value.strip())
                file.read(length)
                self.requests += 1
                self._send(connection, answer)

    def _send(self, connection, answer):
        pause = 0
        for part in answer:
            if part is RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif not isinstance(part, bytes):
                pause = part
            elif not pause:
                connection.sendall(part)
            else:
                self._drip(connection, part, pause)

    def _drip(self, connection, part, pause):
        try:
            for byte in part:
                connection.sendall(bytes([byte]))
                time.sleep(pause)
        except OSError:
            self.gone.set()

    def stop(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def raw_server(answer, **options):
    server = RawServer(answer, **options)
    try:
        yield server
    finally:
        server.stop()
