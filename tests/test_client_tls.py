"""TLS and headers, against a proxy with a certificate in front of a server."""

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest
from certificates import openssl
from fake_triton import KINDS, ask, ask_once, fake_triton, names, predict
from http_proxy import pump
from name_server import NAME, NameServer

from m2f_client import Client, InvalidAddress, ServerUnavailable, Tls


@contextlib.contextmanager
def tls_proxy(context, target):
    """`host:port` of a listener that ends TLS and passes the bytes on; and the bytes of requests as they were sent."""
    host, port = target.split(":")
    seen = []

    class Seen:
        def __init__(self, sink):
            self.sink = sink

        def sendall(self, data):
            seen.append(data)
            self.sink.sendall(data)

        def shutdown(self, how):
            self.sink.shutdown(how)

    def serve(raw):
        with contextlib.suppress(OSError), raw, socket.create_connection((host, int(port))) as inner:
            outer = context.wrap_socket(raw, server_side=True)
            back = threading.Thread(target=pump, args=(inner, outer), daemon=True)
            back.start()
            pump(outer, Seen(inner))
            back.join()

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", seen
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture(params=["https", "grpcs"])
def scheme(request):
    return request.param


@pytest.fixture
def proxy(request, scheme, certificates):
    """A server behind TLS; with `mutual` only for those with a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.set_alpn_protocols(["h2"] if scheme == "grpcs" else ["http/1.1"])
    if getattr(request, "param", None) == "mutual":
        context.load_verify_locations(certificates / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    with fake_triton(scheme[:-1]) as server, tls_proxy(context, server.address) as (address, seen):
        yield f"{scheme}://{address}", seen, server


@KINDS
def test_a_server_with_a_certificate(kind, proxy, certificates):
    url, _, _ = proxy
    result, found = ask(kind, [predict, names], url, tls=Tls(ca=certificates / "ca.pem"))
    assert len(result) == 1
    assert found == ("cat",)


@KINDS
@pytest.mark.parametrize("authority", [None, "other.pem"])
def test_a_certificate_that_is_not_trusted(kind, proxy, certificates, authority):
    url, seen, _ = proxy
    tls = None if authority is None else Tls(ca=certificates / authority)
    with pytest.raises(ServerUnavailable, match=f"no TLS connection to {url} .*; see tls=Tls"):
        ask_once(kind, predict, url, tls=tls)
    assert not seen


@KINDS
def test_a_certificate_for_another_name(kind, proxy, certificates):
    url, seen, _ = proxy
    with pytest.raises(ServerUnavailable):
        ask_once(kind, predict, url.replace("127.0.0.1", "localhost"), tls=Tls(ca=certificates / "ca.pem"))
    assert not seen


@KINDS
def test_a_certificate_is_for_a_name_whatever_its_addresses(kind, proxy, certificates, monkeypatch):
    url, _, _ = proxy
    NameServer(monkeypatch, "127.0.0.1", "127.0.0.2")
    calls = [predict] * 3
    for result in ask(kind, calls, url.replace("127.0.0.1", NAME), tls=Tls(ca=certificates / "ca.pem")):
        assert len(result) == 1


@KINDS
@pytest.mark.parametrize("proxy", ["mutual"], indirect=True)
def test_a_client_with_a_certificate(kind, proxy, certificates):
    url, _, server = proxy
    own = {"cert": certificates / "client.pem", "key": certificates / "client.key"}
    assert ask_once(kind, names, url, tls=Tls(ca=certificates / "ca.pem", **own)) == ("cat",)
    with pytest.raises(ServerUnavailable):
        ask_once(kind, predict, url, tls=Tls(ca=certificates / "ca.pem"))
    assert server.calls == 1


@KINDS
def test_headers_go_with_every_request(kind, proxy, certificates):
    url, _, server = proxy
    headers = {"Authorization": "Bearer secret", "x-tenant": "shapes"}
    ask(kind, [predict, names], url, tls=Tls(ca=certificates / "ca.pem"), headers=headers)
    assert headers == {"Authorization": "Bearer secret", "x-tenant": "shapes"}  # tritonclient writes into its own
    assert [(sent["authorization"], sent["x-tenant"]) for sent in server.headers] == 2 * [("Bearer secret", "shapes")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ca": "missing.pem"}, "missing.pem holds no certificates"),
        ({"ca": "ca.key"}, "ca.key holds no certificates"),
        ({"cert": "client.pem"}, "cert and key go together"),
        ({"key": "client.key"}, "cert and key go together"),
        ({"cert": "client.pem", "key": "server.key"}, "not a certificate and its key"),
        ({"cert": "client.pem", "key": "locked.key"}, "passphrase"),
    ],
)
def test_files_that_cannot_be_used_are_named_before_anything_is_sent(scheme, certificates, files, message):
    openssl(
        "ec", "-in", certificates / "client.key", "-aes128", "-passout", "pass:x", "-out", certificates / "locked.key"
    )
    tls = Tls(**{name: certificates / file for name, file in files.items()})
    with pytest.raises(InvalidAddress, match=message):
        Client(f"{scheme}://localhost", tls=tls)


def test_tls_needs_an_address_that_says_so():
    with pytest.raises(InvalidAddress, match="use grpcs://"):
        Client("grpc://localhost", tls=Tls(ca=Path("ca.pem")))


@pytest.mark.parametrize(
    "headers", [{"a b": "x"}, {"": "x"}, {"x-bin": "x"}, {"a": "x\r\nb: c"}, {"a": "ä"}, {"a": 3}, {3: "a"}]
)
def test_headers_that_cannot_be_sent(headers):
    with pytest.raises(InvalidAddress, match="header"):
        Client("http://localhost", headers=headers)
