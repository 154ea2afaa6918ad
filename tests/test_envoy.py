"""deploy/envoy, run by the real Envoy before replicas: which replica gets a request, and what is refused."""

import contextlib
import http.client
import json
import socket
import ssl
import subprocess

import grpc
import pytest
from benchmarks.rolling import envoy
from conftest import ROOT
from exposition import wait_until
from fake_replicas import FakeReplica
from tritonclient.grpc import service_pb2, service_pb2_grpc

from m2f_client import Client, Tls

ADDRESSES = ("127.0.0.41", "127.0.0.42")
INFER = "/v2/models/mask2former/infer"
MIB = 2**20


def free_ports(address, names):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server((address, 0))) for _ in names]
        return {name: probe.getsockname()[1] for name, probe in zip(names, probes, strict=True)}


def status(ask):
    """The status and the words of a gRPC call that fails."""
    try:
        return "OK", ask()
    except grpc.RpcError as error:
        return error.code().name, error.details()


class Front:
    """A running Envoy, asked over both protocols."""

    def __init__(self, address, ca):
        self.address, self.ca = address, ca
        credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        self._channel = grpc.secure_channel(address, credentials, [("grpc.max_send_message_length", -1)])
        context = ssl.create_default_context(cafile=ca)
        self._connection = http.client.HTTPSConnection(address, context=context, timeout=20)
        self.grpc = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self):
        self._channel.close()
        self._connection.close()

    def http(self, method, path, body=None, **headers):
        """The status and the JSON of an answer."""
        self._connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = self._connection.getresponse()
        return response.status, json.loads(response.read() or b"null")

    def infer(self, protocol, size=1):
        """The address of the replica that answered an inference of some bytes, or why none did."""
        if protocol == "http":
            code, answer = self.http("POST", INFER, bytes(size))
            return answer["replica"] if code == 200 else answer["error"]
        request = service_pb2.ModelInferRequest(model_name="mask2former", raw_input_contents=[bytes(size)])
        code, answer = status(lambda: self.grpc.ModelInfer(request, timeout=20))
        return answer.model_name if code == "OK" else f"{code} {answer}"

    def wait_for(self, *answers):
        """Wait until inferences over either protocol have these answers, and no others."""
        for protocol in ("grpc", "http"):
            found = wait_until(
                lambda got: got == set(answers),
                lambda protocol=protocol: {self.infer(protocol) for _ in range(20)},
            )
            assert found == set(answers)


@contextlib.contextmanager
def running_front(folder, certificates, addresses, ports):
    own = free_ports("127.0.0.1", ("listen", "admin"))
    tls = folder / "tls"
    tls.mkdir()
    for name, source in {"tls.crt": "server.pem", "tls.key": "server.key"}.items():
        (tls / name).write_bytes((certificates / source).read_bytes())
    configuration = folder / "envoy.json"
    places = {name: ("127.0.0.1", port) for name, port in own.items()}
    envoy.configure(configuration, addresses=addresses, ports=ports, tls=tls, **places)
    admin = f"127.0.0.1:{own['admin']}"
    with envoy.running(envoy.command(configuration), admin, folder / "envoy.log"):
        front = Front(f"127.0.0.1:{own['listen']}", certificates / "ca.pem")
        with contextlib.closing(front):
            yield front


@pytest.fixture(scope="module")
def replicas():
    ports = free_ports(ADDRESSES[0], ("http", "grpc", "health"))
    found = [FakeReplica(address, ports) for address in ADDRESSES]
    yield ports, found
    for replica in found:
        replica.stop()


@pytest.fixture(scope="module")
def started(tmp_path_factory, certificates, replicas):
    ports, _ = replicas
    with running_front(tmp_path_factory.mktemp("envoy"), certificates, ADDRESSES, ports) as front:
        yield front


@pytest.fixture
def front(started, replicas):
    """Envoy before two replicas that serve."""
    for replica in replicas[1]:
        replica.state = "serving"
    started.wait_for(*ADDRESSES)
    for replica in replicas[1]:
        replica.seen.clear()
    return started


@pytest.fixture
def pair(front, replicas):  # noqa: ARG001 (after it)
    return replicas[1]


PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "http"])


def test_the_shipped_file_is_valid_and_has_nothing_deprecated(tmp_path, certificates):
    text = (
        (ROOT / "deploy/envoy/envoy.yaml").read_text().replace("/etc/envoy/tls/tls.crt", f"{certificates}/server.pem")
    )
    path = tmp_path / "envoy.yaml"
    path.write_text(text.replace("/etc/envoy/tls/tls.key", f"{certificates}/server.key"))
    done = subprocess.run(envoy.command(path, "--mode", "validate"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "eprecated" not in done.stderr


@PROTOCOLS
def test_both_replicas_are_used(front, pair, protocol):
    assert {front.infer(protocol) for _ in range(40)} == set(ADDRESSES)
    assert sum(len(replica.seen) for replica in pair) == 40


def test_a_replica_that_is_not_ready_gets_no_request(front, pair):
    pair[0].state = "leaving"
    front.wait_for(ADDRESSES[1])
    pair[0].seen.clear()
    assert {front.infer(protocol) for protocol in ("grpc", "http") for _ in range(20)} == {ADDRESSES[1]}
    assert not pair[0].seen


@PROTOCOLS
@pytest.mark.parametrize("state", ["draining", "broken"])
def test_what_a_replica_cannot_answer_is_asked_of_another(front, pair, protocol, state):
    pair[0].state = state
    size = 8 * MIB  # more than Envoy keeps by default, and could not send again
    assert {front.infer(protocol, size) for _ in range(6)} == {ADDRESSES[1]}
    assert len(pair[1].seen) == 6


def test_replicas_that_leave_serve_as_long_as_none_is_ready(front, pair):
    pair[0].state = "leaving"
    front.wait_for(ADDRESSES[1])
    pair[1].state = "leaving"
    front.wait_for(*ADDRESSES)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (("POST", "/v2/repository/index", {}), 404),
        (("POST", "/v2/models/mask2former/load", {}), 404),
        (("GET", "/v2/models/%2e%2e/infer", {}), 404),
        (("GET", "/v2/models/a%2Finfer", {}), 400),
        (("POST", INFER, {"content_encoding": "gzip"}), 415),
        (("POST", INFER, {"grpc_encoding": "gzip"}), 415),
        (("POST", INFER, {"content_encoding": "identity"}), 200),
    ],
)
def test_what_is_let_through_over_http(front, pair, request_, code):
    method, path, headers = request_
    got, answer = front.http(method, path, b"{}", **headers)
    assert got == code
    assert code == 200 or answer["error"]
    assert sum(len(replica.seen) for replica in pair) == (code == 200)


def test_what_is_let_through_over_grpc(front, pair):
    refused = [
        (lambda: front.grpc.RepositoryIndex(service_pb2.RepositoryIndexRequest()), "UNIMPLEMENTED"),
        (lambda: front.grpc.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest()), "UNIMPLEMENTED"),
    ]
    assert [status(ask)[0] for ask, _ in refused] == [code for _, code in refused]
    assert front.infer("grpc", 64 * MIB) == "RESOURCE_EXHAUSTED Payload Too Large"
    assert not pair[0].seen + pair[1].seen


def test_a_body_above_the_limit_is_refused(front, pair):
    assert front.http("POST", INFER, bytes(64 * MIB + 1)) == (
        413,
        {"error": "413 request_payload_too_large Payload Too Large"},
    )
    assert not pair[0].seen + pair[1].seen


def test_the_secret_of_the_administration_does_not_pass(front, pair):
    name = "triton-grpc-protocol-m2f-admin"
    assert front.http("POST", INFER, b"{}", triton_grpc_protocol_m2f_admin="x" * 16)[0] == 200
    front.grpc.ModelInfer(service_pb2.ModelInferRequest(), metadata=[(name, "x" * 16)], timeout=20)
    seen = pair[0].seen + pair[1].seen
    assert len(seen) == 2
    assert not [headers for headers in seen if name in headers]


@pytest.mark.server
def test_the_client_through_envoy(tmp_path, certificates, server, image_files):
    """The real server, over both protocols: the same answers as without Envoy."""
    ports = {"http": int(server.http_url.rpartition(":")[2]), "grpc": int(server.grpc_url.rpartition(":")[2])}
    spare = free_ports("127.0.0.1", ("http", "grpc", "health"))
    health = FakeReplica("127.0.0.1", spare)
    with (
        contextlib.ExitStack() as stack,
        running_front(tmp_path, certificates, ["127.0.0.1"], {**ports, "health": spare["health"]}) as front,
        Client(server.grpc_url) as direct,
    ):
        stack.callback(health.stop)
        for scheme in ("grpcs", "https"):
            with Client(f"{scheme}://{front.address}", tls=Tls(ca=front.ca)) as client:
                for image in image_files[:2]:
                    assert list(client.predict(image).rle) == list(direct.predict(image).rle)
