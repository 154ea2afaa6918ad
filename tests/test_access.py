"""What the live server refuses, over HTTP and gRPC, and to whom."""

import json
import re
import urllib.error
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import tritonclient.grpc
from listen import listen_http
from throwaway import FREE_PORT_OPTIONS, command, write_model
from tritonclient.utils import InferenceServerException

from m2f_client import Client, ModelNotFound
from m2f_server import ADMIN_HEADER, AccessError
from m2f_server.access import RESTRICTED, Access, read_access
from m2f_server.control import Control

TOKEN = "correct-horse-battery-staple"

HTTP = {
    "model-repository": [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/mask2former/load"),
        ("POST", "/v2/repository/models/mask2former/unload"),
        ("POST", "/v2/repository/models/%6dask2former/unload"),
    ],
    "shared-memory": [
        (method, f"/v2/{kind}sharedmemory{what}")
        for kind in ("system", "cuda")
        for method, what in [
            ("GET", "/status"),
            ("GET", "/region/x/status"),
            ("POST", "/region/x/register"),
            ("POST", "/region/x/unregister"),
            ("POST", "/unregister"),
        ]
    ],
    "trace": [
        (method, f"/v2{model}/trace/setting") for method in ("GET", "POST") for model in ("", "/models/mask2former")
    ],
    "logging": [("GET", "/v2/logging"), ("POST", "/v2/logging")],
}
GRPC = {
    "model-repository": [
        lambda c, h: c.get_model_repository_index(headers=h),
        lambda c, h: c.load_model("mask2former", headers=h),
        lambda c, h: c.load_model("evil", config="{}", files={"file:1/model.py": b"0"}, headers=h),
        lambda c, h: c.unload_model("mask2former", headers=h),
    ],
    "shared-memory": [
        lambda c, h: c.get_system_shared_memory_status(headers=h),
        lambda c, h: c.register_system_shared_memory("x", "/x", 8, headers=h),
        lambda c, h: c.unregister_system_shared_memory(headers=h),
        lambda c, h: c.get_cuda_shared_memory_status(headers=h),
        lambda c, h: c.register_cuda_shared_memory("x", b"AAAA", 0, 8, headers=h),
        lambda c, h: c.unregister_cuda_shared_memory(headers=h),
    ],
    "trace": [
        lambda c, h: c.get_trace_settings(headers=h),
        lambda c, h: c.update_trace_settings("mask2former", {"trace_level": ["TENSORS"]}, headers=h),
    ],
    "logging": [
        lambda c, h: c.get_log_settings(headers=h),
        lambda c, h: c.update_log_settings({"log_file": "/tmp/x"}, headers=h),
    ],
}
WRONG = [
    pytest.param({}, id="no header"),
    pytest.param({ADMIN_HEADER: TOKEN}, id="another server's secret"),
    pytest.param({ADMIN_HEADER: ""}, id="an empty one"),
    pytest.param({"m2f-admin": TOKEN}, id="another header"),
]


def http(server, method, path, headers=None):
    """Status and body of a request."""
    body = b"{}" if method == "POST" else None
    request = urllib.request.Request(f"http://{server.http_url}{path}", data=body, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope="module")
def grpc_client(server):
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def test_every_restricted_interface_is_tried():
    assert set(HTTP) == set(GRPC) == set(RESTRICTED)


@pytest.mark.server
@pytest.mark.parametrize("headers", WRONG)
def test_what_changes_the_server_is_refused(server, grpc_client, headers):
    for method, path in (call for calls in HTTP.values() for call in calls):
        status, body = http(server, method, path, headers)
        assert status == 403, f"{method} {path}: {body}"
    for call in (call for calls in GRPC.values() for call in calls):
        with pytest.raises(InferenceServerException, match="restricted"):
            call(grpc_client, headers)


@pytest.mark.server
def test_one_header_opens_both(server, grpc_client):
    admin = server.access.headers
    status, body = http(server, "POST", "/v2/repository/index", admin)
    assert status == 200
    assert "mask2former" in {model["name"] for model in json.loads(body)}
    assert grpc_client.get_model_repository_index(headers=admin).models
    for path in ("/v2/systemsharedmemory/status", "/v2/trace/setting", "/v2/logging"):
        assert http(server, "GET", path, admin)[0] == 200
    assert grpc_client.get_log_settings(headers=admin).settings


@pytest.mark.server
def test_what_everybody_may(server, grpc_client):
    open_to_all = ("", "/health/live", "/health/ready", "/models/mask2former", "/models/mask2former/config")
    for path in (*open_to_all, "/models/mask2former/stats"):
        assert http(server, "GET", f"/v2{path}")[0] == 200
    assert grpc_client.is_server_ready()


@pytest.mark.server
def test_no_path_goes_around(server):
    for path in (
        "//repository/index",
        "/./repository/index",
        "/REPOSITORY/index",
        "/repository/index/",
        "/x/../logging",
    ):
        assert http(server, "POST", f"/v2{path}")[0] in (400, 403, 404, 405)
        assert http(server, "GET", f"/v2{path}")[0] in (400, 403, 404, 405)


@pytest.mark.server
def test_the_secret_is_not_in_the_log(server):
    assert server.access.token not in server.read_log()


@pytest.mark.server
def test_the_command_takes_the_token_from_a_file(tmp_path):
    write_model(tmp_path / "models")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    options = ["--model-repository", str(tmp_path / "models"), "--admin-token-file", str(tmp_path / "token"), "--json"]
    process = command(*options, *FREE_PORT_OPTIONS)
    try:
        ready = process.stdout.readline()
        assert TOKEN not in ready
        with tritonclient.grpc.InferenceServerClient(json.loads(ready)["grpc"]) as client:
            assert client.get_model_repository_index(headers={ADMIN_HEADER: TOKEN}).models[0].name == "identity"
        for address in (ready, json.loads(ready)["grpc_url"], json.loads(ready)["grpc"], json.loads(ready)["http_url"]):
            with (
                Client(address) as client,  # what it prints can be given back
                pytest.raises(ModelNotFound, match="it has no model of m2f"),
            ):
                client.predict(b"x")
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.server
def test_nobody_else_knows_what_the_server_will_call_itself(server):
    identity = json.loads(http(server, "GET", "/v2")[1])["name"]
    name = Path(f"/proc/{server.pid}/cwd").resolve().name  # anyone may see it
    assert re.fullmatch(rf"{name}-[0-9a-f]{{32}}", identity)
    assert not [path for path in Path("/dev/shm").iterdir() if identity in path.name]


def test_the_secret_is_told_to_the_restricted_interface_alone():
    heard = []

    class Impostor(BaseHTTPRequestHandler):
        """Was on the port before the server."""

        def do_GET(self):
            heard.append((self.path, self.headers.get(ADMIN_HEADER)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"name": "m2f"}')

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    stop, port = listen_http(Impostor)
    control = Control(http_url=f"127.0.0.1:{port}", metrics_url="", access=Access(TOKEN))
    for call in (control.answered, lambda: control.config("x"), lambda: control.is_ready("x"), control.index):
        with suppress(LookupError):  # the answer is none of Triton's
            call()
    control.call("GET", "/v2")
    stop()
    assert {path for path, secret in heard if secret} == {"/v2/repository/index"}
    assert len(heard) == 5


def test_tokens_are_checked_and_not_shown(tmp_path):
    assert Access().token != Access().token
    assert Access().token not in repr(Access())
    for bad in ("", "short", "a" * 257, "with white space in it", "comma,comma,comma,comma", "new\nline" * 4, "ä" * 20):
        with pytest.raises(AccessError, match="16 to 256"):
            Access(bad)
        (tmp_path / "token").write_text(bad)
        with pytest.raises(AccessError, match=f"admin token file {tmp_path}/token: "):
            read_access(tmp_path / "token")
    with pytest.raises(AccessError, match="No such file"):
        read_access(tmp_path / "missing")
    (tmp_path / "token").write_bytes(b"\xff" * 20)
    with pytest.raises(AccessError, match="decode"):
        read_access(tmp_path / "token")
