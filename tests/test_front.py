"""deploy/nginx before the real server: what it lets through, what it refuses, and how that reads to a client."""

import contextlib
import gzip
import http.client
import json
import ssl
import subprocess

import grpc
import numpy as np
import pytest
from exposition import wait_until
from nginx_front import INFER, configure, free_port, running
from pictures import picture
from tritonclient.grpc import service_pb2, service_pb2_grpc

from m2f_client import Client, Tls
from m2f_server import ADMIN_HEADER

pytestmark = pytest.mark.server
SERVICE = "/inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def front(tmp_path_factory, server, certificates):
    """The front as it is shipped."""
    folder = tmp_path_factory.mktemp("front") / "nginx"
    with running(folder, configure(folder, server, certificates, {})) as address:
        yield address


@pytest.fixture
def connect(certificates):
    """Open an HTTPS connection to a front."""

    def connect(front):
        context = ssl.create_default_context(cafile=certificates / "ca.pem")
        return http.client.HTTPSConnection(front, context=context, timeout=20)

    return connect


@pytest.fixture
def ask(connect):
    """Send a request to a front; status, and what its JSON says is wrong."""

    def ask(front, method, path, **options):
        with contextlib.closing(connect(front)) as connection:
            connection.request(method, path, **options)
            response = connection.getresponse()
            body = response.read()
            return response.status, json.loads(body).get("error") if body else None

    return ask


@pytest.fixture
def channel(certificates):
    """Open a gRPC channel to a front."""

    def channel(front, **options):
        credentials = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
        return grpc.secure_channel(front, credentials, **options)

    return channel


def message(size=100):
    """A request to infer, of about this many bytes."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1, 1])
    content = len(b"x" * size).to_bytes(4, "little") + b"x" * size
    return service_pb2.ModelInferRequest(model_name="mask2former", inputs=[tensor], raw_input_contents=[content])


def infer(channel, request):
    """Status and words of an error."""
    with channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_answers_are_the_servers_own(front, server, certificates, scheme):
    with Client(f"http://{server.http_url}") as plain:
        expected = plain.predict(picture(90, 80))
    with Client(f"{scheme}://{front}", tls=Tls(ca=certificates / "ca.pem"), timeout=30) as client:
        result = client.predict(picture(90, 80))
        assert np.array_equal(result.scores, expected.scores)
        assert list(result.rle) == list(expected.rle)
        assert client.class_names


def test_the_servers_errors_pass_through(front, ask, channel):
    status, error = ask(front, "POST", INFER, body=b'{"inputs":[]}')
    assert status == 400
    assert "inputs" in error
    code, words = infer(channel(front), message())
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "image" in words


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/metrics"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/mask2former/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/cudasharedmemory/region/x/register"),
        ("POST", "/v2/trace/setting"),
        ("POST", "/v2/models/mask2former/trace/setting"),
        ("POST", "/v2/logging"),
        ("GET", "/v2/models/stats"),
        ("GET", "/v2/models/mask2former/stats"),
        ("POST", "/v2/models/mask2former_engine/infer"),
        ("POST", "/v2/models/mask2former/generate"),
        ("POST", "/v2/models/mask2former/infer/../../../repository/index"),
        ("POST", "/v2/models/mask2former/%2e%2e/%2e%2e/repository/index"),
        ("POST", "/v2//repository//index"),
        ("GET", "/v2/repository/index%23/../../../v2/health/live"),
        ("GET", "/v2/repository/../health/live"),
        ("GET", "/v2//health/live"),
        ("GET", "/v2/health/./live"),
        ("GET", "/v2/health/live;x"),
        ("GET", "/v2/health/liv%65"),
        ("POST", "/invocations"),
        ("POST", "/predict"),
    ],
)
def test_all_else_does_not_exist(front, server, ask, method, path):
    assert ask(front, method, path, headers=server.access.headers) == (404, "nothing is served under this path")


@pytest.mark.parametrize(("method", "path"), [("POST", "/v2/health/live"), ("DELETE", "/v2"), ("GET", INFER)])
def test_methods(front, ask, method, path):
    assert ask(front, method, path) == (403, "this method is not allowed here")


@pytest.mark.parametrize("name", ["RepositoryModelLoad/../ServerLive", "./ServerLive", "Server%4cive", "/ServerLive"])
def test_grpc_methods_by_other_ways(front, channel, name):
    with channel(front) as opened, pytest.raises(grpc.RpcError) as caught:
        opened.unary_unary(f"{SERVICE}/{name}")(b"", timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("name", ["RepositoryIndex", "SystemSharedMemoryStatus", "LogSettings", "ModelStreamInfer"])
def test_grpc_methods(front, server, channel, name):
    with channel(front) as opened, pytest.raises(grpc.RpcError) as caught:
        opened.unary_unary(f"{SERVICE}/{name}")(b"", timeout=20, metadata=list(server.access.headers.items()))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "this method is not served here"


def test_the_secret_does_not_get_through(make_front, server, ask, channel):
    """Even where a path to the restricted interfaces is open by mistake."""
    mistake = {"^/v2(/health": "^/v2(/logging|/health", "Server(Live|": "LogSettings|Server(Live|"}
    front = make_front(**mistake)
    admin = server.access.headers
    assert ask(front, "GET", "/v2/logging", headers=admin)[0] == 403
    with channel(front) as opened, pytest.raises(grpc.RpcError, match="restricted"):
        opened.unary_unary(f"{SERVICE}/LogSettings")(b"", timeout=20, metadata=list(admin.items()))
    assert set(admin) == {ADMIN_HEADER}


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "gzip, identity"])
def test_compressed_bodies_are_refused(front, ask, encoding):
    body = gzip.compress(bytes(1 << 20))
    got = ask(front, "POST", INFER, body=body, headers={"Content-Encoding": encoding})
    assert got == (415, "compressed bodies are not taken")


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_refused(front, channel, compression):
    got = infer(channel(front, compression=compression), message(1 << 20))
    assert got == (grpc.StatusCode.UNIMPLEMENTED, "compressed messages are not taken")


def test_bodies_are_capped_before_they_are_read(front, ask):
    assert ask(front, "POST", INFER, headers={"Content-Length": str((64 << 20) + 1)}) == (413, "the body is too large")


def test_bodies_without_a_length_are_capped(make_front, ask, channel):
    front = make_front(**{"64m": "1m"})
    chunks = (bytes(1 << 16) for _ in range(17))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):  # it may hang up while we send
        assert ask(front, "POST", INFER, body=chunks, encode_chunked=True) == (413, "the body is too large")
    got = infer(channel(front), message(2 << 20))
    assert got == (grpc.StatusCode.RESOURCE_EXHAUSTED, "the message is too large")
    assert ask(front, "POST", INFER, body=b"{}" + bytes(1 << 19))[1] != "the body is too large"


def test_rate(make_front, connect, channel):
    front = make_front(**{"rate=50r/s": "rate=1r/m", "burst=100": "burst=3"})
    with contextlib.closing(connect(front)) as connection:
        seen = []
        for _ in range(6):
            connection.request("GET", "/v2/health/live")
            response = connection.getresponse()
            seen.append((response.status, response.read()))
    assert [status for status, _ in seen] == [200] * 4 + [429] * 2
    assert json.loads(seen[-1][1]) == {"error": "too many requests"}
    assert infer(channel(front), message()) == (grpc.StatusCode.UNAVAILABLE, "too many requests")


def test_requests_in_flight(make_front, ask, connect):
    front = make_front(**{"limit_conn in_flight 32": "limit_conn in_flight 1"})
    with contextlib.closing(connect(front)) as first:
        first.putrequest("POST", INFER)
        first.putheader("Content-Length", "100")
        first.endheaders(b"half")
        refused = (429, "too many requests")
        assert wait_until(lambda answer: answer == refused, lambda: ask(front, "GET", "/v2/health/live")) == refused


@pytest.mark.parametrize("part", [b"GET /v2 HTTP/1.1\r\nHost: m2f\r\nX-Slow", f"POST {INFER} HTTP/1.1\r\n".encode()])
def test_slow_clients_are_hung_up_on(make_front, connect, part):
    front = make_front(**{"client_header_timeout 10s": "client_header_timeout 1s"})
    with contextlib.closing(connect(front)) as connection:
        connection.connect()
        connection.sock.sendall(part)
        assert connection.sock.recv(1 << 16)[:12] in (b"", b"HTTP/1.1 408")


def test_without_a_server_it_says_so(make_front, ask, channel):
    nobody = f"127.0.0.1:{free_port()}"
    front = make_front(**{"127.0.0.1:8000": nobody, "127.0.0.1:8001": nobody})
    assert ask(front, "GET", "/v2/health/ready") == (503, "the server takes no work now")
    assert infer(channel(front), message()) == (grpc.StatusCode.UNAVAILABLE, "the server takes no work now")


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_mutual_tls(make_front, certificates, scheme):
    url = f"{scheme}://{make_front(mutual=True)}"
    own = {"cert": certificates / "client.pem", "key": certificates / "client.key"}
    with Client(url, tls=Tls(ca=certificates / "ca.pem", **own), timeout=30) as client:
        assert client.class_names
    stranger = {"cert": certificates / "other.pem", "key": certificates / "other.key"}
    for bad in ({}, stranger):
        with Client(url, tls=Tls(ca=certificates / "ca.pem", **bad), timeout=30) as client:
            with pytest.raises(Exception, match=r"certificate|400") as caught:
                client.predict(picture(90, 80))
            assert not isinstance(caught.value, AssertionError)


def test_plain_http_and_old_tls_are_refused(front):
    with contextlib.closing(http.client.HTTPConnection(front, timeout=10)) as connection:
        connection.request("GET", "/v2")
        assert connection.getresponse().status == 400
    arguments = ["openssl", "s_client", "-connect", front, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]
    assert subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode != 0
