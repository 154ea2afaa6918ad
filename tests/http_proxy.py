"""A proxy as companies have it: tunnels for CONNECT, whole addresses for http. It knows one server by all names."""

import contextlib
import re
import socket
import threading

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy")
NO_PROXIES = {spelt: None for name in PROXY_VARIABLES for spelt in (name, name.upper())}
"""For an environment without any of them: `CliRunner` removes the variables that are None."""


def no_proxies(monkeypatch):
    """Remove the variables that name proxies, and those that except hosts: the tests' own among them."""
    for name in NO_PROXIES:
        monkeypatch.delenv(name, raising=False)


class HttpProxy:
    """Passes on what it gets to one server.

    Attributes:
        address: its `host:port`.
        asked: the heads of the requests for a way so far.
    """

    def __init__(self, target, tls=None, refusal=None):
        self._target, self._tls, self._refusal = target, tls, refusal
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, outer):
        with contextlib.suppress(OSError), outer:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := outer.recv(65536)):
                    return
                head += data
            head, rest = head.split(b"\r\n\r\n", 1)
            self.asked.append(head.decode())
            if self._refusal is not None:
                outer.sendall(f"HTTP/1.1 {self._refusal}\r\nContent-Length: 0\r\n\r\n".encode())
                return
            host, port = self._target.split(":")
            with socket.create_connection((host, int(port))) as inner:
                if head.startswith(b"CONNECT"):
                    outer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    outer = self._tls.wrap_socket(outer, server_side=True) if self._tls else outer
                else:
                    inner.sendall(re.sub(rb"http://[^/ ]+", b"", head, count=1) + b"\r\n\r\n")
                inner.sendall(rest)
                back = threading.Thread(target=pump, args=(inner, outer), daemon=True)
                back.start()
                pump(outer, inner)
                back.join()

    def stop(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def pump(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def http_proxy(target, **options):
    proxy = HttpProxy(target, **options)
    try:
        yield proxy
    finally:
        proxy.stop()
