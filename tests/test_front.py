"""deploy/nginx before the real server: what it lets through, what it refuses, and how that reads to a client."""

import contextlib
import gzip
import http.client
import json
import random
import re
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from bad_inputs import GOOD
from bad_structures import CLASSIFICATION, COUNTS, JSON, MODELS, SHAPES, post, whole
from conftest import ROOT
from exposition import wait_until
from harm import Harm
from kserve import image_input
from mutate import mutated, mutated_post
from nginx_front import INFER, configure, free_port, running
from pictures import encode, picture
from tritonclient.grpc import service_pb2, service_pb2_grpc
from wire import GrpcWire, HttpWire, Post
from wire import message as infer_message

from m2f.contract import OUTPUTS, PUBLIC_MODEL
from m2f.settings import KEYS
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


def test_names_of_exports_are_let_through_and_no_others(make_front, ask, channel):
    """The server behind has no model of the second name, and its words come through."""
    front = make_front(**{'default "mask2former"': 'default "mask2former left.2"'})

    def both(model):
        request = message()
        request.model_name = model
        over_http = ask(front, "POST", f"/v2/models/{model}/infer", body=b'{"inputs":[]}')[1]
        return over_http, infer(channel(front), request)[1]

    for model in ("left.2", "left.2_tensor"):
        assert all("unknown model" in words for words in both(model))
    for model in ("left.2_engine", "leftx2", "left", "resnet"):
        assert both(model) == ("nothing is served under this path", "this model is not served here")
    assert ask(front, "GET", "/v2/models/mask2former/ready")[0] == 200
    assert "unknown model" in ask(front, "GET", "/v2/models/left.2_raw/config")[1]
    assert ask(front, "GET", "/v2/models/resnet/config")[0] == 404


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


def test_a_connection_ends_at_its_age_so_that_a_client_finds_another_replica(make_front, connect):
    front = make_front(**{"keepalive_time 2s": "keepalive_time 1ms"})

    def ended():
        connection.request("GET", "/v2/health/live")
        response = connection.getresponse()
        response.read()
        return response.getheader("Connection") == "close"

    with contextlib.closing(connect(front)) as connection:
        assert wait_until(bool, ended)


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


# Structures that Triton 2.51 does not survive (docs/triton-faults.md)

BAD = {
    f"{kind}: {name}": case
    for kind, cases in {
        "classification": CLASSIFICATION, "JSON": JSON, "counts": COUNTS, "shapes": SHAPES, "models": MODELS,
    }.items()
    for name, case in cases.items()
}  # fmt: skip


@pytest.fixture(scope="module")
def patient_front(tmp_path_factory, server, certificates):
    """The front as it is shipped, for more requests in a second."""
    folder = tmp_path_factory.mktemp("patient") / "nginx"
    with running(folder, configure(folder, server, certificates, {"rate=50r/s": "rate=5000r/s"})) as address:
        yield address


@pytest.fixture(scope="module")
def send(patient_front, certificates):
    """Send a `Post`, or a message of gRPC."""
    here = SimpleNamespace(http_url=patient_front, grpc_url=patient_front)
    opened = [kind(here, ca=certificates / "ca.pem") for kind in (HttpWire, GrpcWire)]
    yield lambda sent: opened[not isinstance(sent, Post)].send(sent)
    for wire in opened:
        wire.close()


@pytest.fixture(scope="module")
def unharmed(server):
    harm = Harm(server)
    yield
    assert harm.died() == []


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("name", BAD)
def test_a_structure_that_no_client_needs_is_refused(send, name):
    sent, reason = BAD[name]
    answer = send(sent)
    assert answer.status == ("400" if isinstance(sent, Post) else "INVALID_ARGUMENT"), answer
    assert re.search(reason, answer.message), answer


SMALL = [sent for sent, _ in BAD.values() if not isinstance(sent, Post) or len(sent.body) < 10_000]
MESSAGES = [m if isinstance(m, bytes) else m.SerializeToString() for m in SMALL if not isinstance(m, Post)]


@pytest.mark.parametrize(
    "count", [pytest.param(300, marks=pytest.mark.more), pytest.param(20_000, marks=pytest.mark.chaos)]
)
@pytest.mark.usefixtures("unharmed")
@pytest.mark.timeout(300)
def test_damaged_structures(send, server, count):
    """Whatever gets through, no process of the server ends of it."""
    rng, harm = random.Random(count), Harm(server)
    posts = [sent for sent in SMALL if isinstance(sent, Post)]
    for number in range(count):
        damaged = rng.choice(
            [
                lambda: mutated_post(rng, rng.choice(posts), [post.body for post in posts]),
                lambda: mutated(rng, rng.choice(MESSAGES)[:20_000], MESSAGES),
            ]
        )()
        answer = send(damaged)
        assert answer.accepted or answer.message, answer
        if number % 100 == 99:
            assert harm.died() == []


def json_whole(**changes):
    """A request without binary data: JSON alone, as curl sends it."""
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": ["not an image"]}
    return {"inputs": [tensor], "outputs": [{"name": "num_instances"}], **changes}


def grpc_changed(change):
    request = infer_message(PUBLIC_MODEL, image_input(GOOD), ["num_instances"])
    change(request)
    return request


def typed(request):
    """The image beside its shape, not among the raw contents."""
    del request.raw_input_contents[:]
    request.inputs[0].contents.bytes_contents.append(GOOD)


ALL = [t.name for t in OUTPUTS]
SETTINGS = dict.fromkeys(KEYS, "x" * 4000)
NOT_AN_IMAGE = "not an image"
USUAL = {
    "every output": (post(whole([{"name": name, "parameters": {"binary_data": True}} for name in ALL])), None),
    "every output, gRPC": (infer_message(PUBLIC_MODEL, image_input(GOOD), ALL), None),
    "no output named": (post({key: value for key, value in whole().items() if key != "outputs"}), None),
    "id, timeout and answers in binary": (
        post(whole(id='a"b\\', parameters={"timeout": 9_000_000, "binary_data_output": True})),
        None,
    ),
    "eight images": (Post.of(PUBLIC_MODEL, image_input(*[GOOD] * 8), ["num_instances"]), None),
    "eight images, gRPC": (infer_message(PUBLIC_MODEL, image_input(*[GOOD] * 8), ["num_instances"]), None),
    "every parameter": (post(whole(parameters=SETTINGS)), "must be"),
    "every parameter, gRPC": (infer_message(PUBLIC_MODEL, image_input(GOOD), **SETTINGS), "must be"),
    "JSON alone": (Post(json.dumps(json_whole()).encode()), NOT_AN_IMAGE),
    "JSON with white space": (Post(json.dumps(json_whole(), indent=4).encode()), NOT_AN_IMAGE),
    "JSON with a megabyte of text": (
        Post(json.dumps(json_whole()).replace("not an image", "a" * (1 << 20) + "/+=").encode()),
        NOT_AN_IMAGE,
    ),
    "JSON with escapes": (post(whole(parameters={"classes": '\u00e9 "{[\\'})), "has no class"),
    "the word classification": (post(whole(id="classification", parameters={"classes": "classification"})), "no class"),
    "a parameter classification": (post(whole(parameters={"classification": 3})), "unknown request parameter"),
    "the image alone": (Post(GOOD, (("Inference-Header-Content-Length", "0"),)), None),
    "typed contents, gRPC": (grpc_changed(typed), None),
    "version and id, gRPC": (grpc_changed(lambda r: r.MergeFromString(b"\x12\x011\x1a\x01i")), None),
    "a shape out of its pack, gRPC": (
        grpc_changed(lambda r: (r.inputs[0].ClearField("shape"), r.inputs[0].MergeFromString(b"\x18\x01\x18\x01"))),
        None,
    ),
    "a batch of none, which Triton takes for one": (post(whole(image={"shape": [0, 1]})), None),
}


@pytest.mark.parametrize("name", USUAL)
def test_what_clients_need_gets_through(send, name):
    """The answer is Triton's own: good, or with an error of a model."""
    sent, reason = USUAL[name]
    answer = send(sent)
    if reason is None:
        assert answer.accepted, answer
    else:
        assert re.search(reason, answer.message), answer


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_large_requests_and_answers(patient_front, server, certificates, scheme):
    image = encode(np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), np.uint8), compress_level=0)  # 5.9 MB
    with Client(f"http://{server.http_url}", timeout=60) as plain:
        expected = plain.predict(image, outputs=["semantic", "cls_logits"])
    with Client(f"{scheme}://{patient_front}", tls=Tls(ca=certificates / "ca.pem"), timeout=60) as client:
        result = client.predict(image, outputs=["semantic", "cls_logits"])
    assert np.array_equal(result.semantic, expected.semantic)  # 7.8 MB
    assert np.array_equal(result.cls_logits, expected.cls_logits)


@contextlib.contextmanager
def fake_inference(infer):
    """A gRPC server whose every method is `infer(bytes, context)`; its address."""

    class Every(grpc.GenericRpcHandler):
        def service(self, _):
            return grpc.unary_unary_rpc_method_handler(infer)

    fake = grpc.server(ThreadPoolExecutor(4), handlers=[Every()])
    port = fake.add_insecure_port("127.0.0.1:0")
    fake.start()
    yield f"127.0.0.1:{port}"
    fake.stop(None).wait(10)


def test_cancelled_calls_do_not_reach_triton(make_front, channel):
    """Neither that the client hangs up nor its deadline; hundreds of them freeze or end Triton up to 25.05."""
    begun, seen, go_on = threading.Event(), [], threading.Event()

    def infer(_, context):
        if not seen:
            seen.extend((context, context.time_remaining()))
            begun.set()
            assert go_on.wait(20)
            seen.append(context.is_active())
        return b""

    with fake_inference(infer) as triton:
        front = make_front(**{"127.0.0.1:8001": triton})
        with channel(front) as opened:
            call = opened.unary_unary(f"{SERVICE}/ModelInfer")
            data = message().SerializeToString()
            first = call.future(data, timeout=30)
            assert begun.wait(20)
            first.cancel()
            assert call(data, timeout=20) == b""  # the front has had the time to pass on the cancellation
            go_on.set()
            assert wait_until(lambda n: n == 3, lambda: len(seen)) == 3
    _, deadline, active = seen
    assert deadline > 3600  # none
    assert active


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_six_thousand_cancelled_calls(make_front, channel):
    """As from many addresses: without the front, or with one that passes cancellations on, 2.51 freezes."""
    from m2f_server import serve

    wide = {
        "rate=50r/s": "rate=5000r/s",
        "in_flight 32": "in_flight 1000",
        "in_flight_of_all 64": "in_flight_of_all 1000",
    }
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    request = infer_message(PUBLIC_MODEL, image_input(GOOD), ["num_instances"]).SerializeToString()
    with serve(model_repository=ROOT / "model_repository", config_name="cpu", **ports) as own:
        harm = Harm(own)
        front = make_front(**wide, **{"127.0.0.1:8001": own.grpc_url})
        for _ in range(5):
            run_all(8, lambda: cancel_calls(channel(front), request, 150))
            assert wait_until(bool, lambda: is_answered(channel(front), request))
        assert harm.died() == []


def is_answered(channel, request):
    """False: the queue is full of calls that nobody waits for."""
    with channel as opened, contextlib.suppress(grpc.RpcError):
        return bool(opened.unary_unary(f"{SERVICE}/ModelInfer")(request, timeout=30))
    return False


def cancel_calls(channel, request, count):
    """Cancel calls some milliseconds after their start: half by hand, half by a deadline."""
    rng = random.Random(0)
    with channel as opened:
        call = opened.unary_unary(f"{SERVICE}/ModelInfer")
        for _ in range(count):
            with contextlib.suppress(grpc.RpcError):
                call(request, timeout=rng.uniform(0.001, 0.03))
            pending = call.future(request, timeout=30)
            time.sleep(rng.uniform(0, 0.02))
            pending.cancel()


def run_all(count, work):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
