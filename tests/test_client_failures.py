"""The table of errors: what tritonclient raises (taken from Triton 2.51), and what the user gets."""

import concurrent.futures
import socket
import subprocess
import sys
import textwrap

import httpcore
import pytest
from fake_triton import KINDS, SCHEMES, ask_once, fake_triton, predict
from tritonclient.utils import InferenceServerException

from m2f_client import (
    Client,
    InvalidRequest,
    ModelNotFound,
    NoSharedMemory,
    ServerError,
    ServerUnavailable,
    Timeout,
)
from m2f_client.transports.failures import clean, translate

GRPC, HTTP = "grpc://127.0.0.1:8001", "http://127.0.0.1:8000"
NO_ANSWER = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect: {}"


def from_server(status, message):
    return InferenceServerException(message, status=status)


def grpc_error(code, message):
    return from_server(f"StatusCode.{code}", message)


@pytest.mark.parametrize(
    ("url", "error", "kind", "message"),
    [
        # the server's own words, without the wrapping of the ensemble
        (GRPC, grpc_error("INVALID_ARGUMENT", "in ensemble 'mask2former', no image"), InvalidRequest, "no image"),
        (HTTP, from_server("400", "in ensemble 'mask2former', no image"), InvalidRequest, "no image"),
        (HTTP, from_server("400", "[request id: <id_unknown>] batch-size"), InvalidRequest, "batch-size"),
        (HTTP, from_server(None, 'Parameter "timeout" is reserved'), InvalidRequest, 'Parameter "timeout" is reserved'),
        # models
        (GRPC, grpc_error("NOT_FOUND", "unknown model: 'x'"), ModelNotFound, f"unknown model: 'x' (server {GRPC})"),
        (HTTP, from_server("404", "unknown model: 'x'"), ModelNotFound, f"unknown model: 'x' (server {HTTP})"),
        (HTTP, from_server("404", "Not Found"), ServerError, f"what answers at {HTTP} is not a Triton server (404)"),
        # interfaces behind a secret, and shared memory: whichever the status
        (
            GRPC,
            grpc_error("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"),
            InvalidRequest,
            "the server wants a secret for this: headers={'triton-grpc-protocol-key': ...}",
        ),
        (
            HTTP,
            from_server("403", "This API is restricted, expecting header 'key'"),
            InvalidRequest,
            "the server wants a secret for this: headers={'key': ...}",
        ),
        *(
            (GRPC, grpc_error(code, f"in ensemble 'mask2former', {words}"), NoSharedMemory, words)
            for code, words in (
                ("INTERNAL", "shared memory size specified with the request for output 'masks' (1 bytes) should be"),
                ("INTERNAL", "Unable to open shared memory region: '/m2f-client-1'"),
                ("INTERNAL", "Cannot unregister shared memory region 'm2f-client-1', it is currently in use."),
                ("NOT_FOUND", "Unable to find shared memory region: 'm2f-client-1'"),
                ("INVALID_ARGUMENT", "Invalid offset + byte size for shared memory region: 'm2f-client-1'"),
            )
        ),
        (
            GRPC,
            grpc_error("INTERNAL", "Failed to increase the shared memory pool size for key 'm2f-1'"),
            ServerError,
            "Failed to increase the shared memory pool size for key 'm2f-1'",  # the server's own
        ),
        # nobody there
        (
            GRPC,
            grpc_error("UNAVAILABLE", NO_ANSWER.format("Connection refused")),
            ServerUnavailable,
            f"no gRPC server at {GRPC} (Connection refused); start one with: m2f serve",
        ),
        (
            HTTP,
            ConnectionRefusedError(111, "Connection refused"),
            ServerUnavailable,
            f"no HTTP server at {HTTP} (Connection refused); start one with: m2f serve",
        ),
        (
            HTTP,
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect call failed"),
            ServerUnavailable,
            f"no HTTP server at {HTTP} (Connection refused); start one with: m2f serve",
        ),
        (
            HTTP,
            socket.gaierror(-2, "Name or service not known"),
            ServerUnavailable,
            f"no HTTP server at {HTTP} (Name or service not known); start one with: m2f serve",
        ),
        (
            HTTP,
            httpcore.RemoteProtocolError("Server disconnected without sending a response."),
            ServerUnavailable,
            f"the server at {HTTP} closed the connection",
        ),
        # busy: not a case for `m2f serve`
        (
            GRPC,
            grpc_error("UNAVAILABLE", "in ensemble 'mask2former', Exceeds maximum queue size"),
            ServerUnavailable,
            f"the server at {GRPC} takes no work now: Exceeds maximum queue size",
        ),
        (
            HTTP,
            from_server("429", "too many requests"),
            ServerUnavailable,
            f"the server at {HTTP} takes no work now: too many requests",
        ),
        (
            GRPC,
            grpc_error("CANCELLED", "CANCELLED"),
            ServerUnavailable,
            f"the server at {GRPC} takes no work now: CANCELLED",
        ),
        # stopping: Triton unloads its models first
        (
            GRPC,
            grpc_error("NOT_FOUND", "Request for unknown model: 'x' has no available versions"),
            ServerUnavailable,
            f"the server at {GRPC} takes no work now: Request for unknown model: 'x' has no available versions",
        ),
        # time
        (
            GRPC,
            grpc_error("DEADLINE_EXCEEDED", "Deadline Exceeded"),
            Timeout,
            f"no answer from {GRPC} within 2.5 s; a longer timeout may help",
        ),
        (HTTP, TimeoutError("timed out"), Timeout, f"no answer from {HTTP} within 2.5 s; a longer timeout may help"),
        # the server's failures
        (
            GRPC,
            grpc_error(
                "INTERNAL",
                "in ensemble 'mask2former', Failed to process the request(s) for model 'mask2former_raw_0_1', "
                "message: KeyError: 'boom'\n\nAt:\n  /m/1/model.py(45): execute\n",
            ),
            ServerError,
            "mask2former_raw failed: KeyError: 'boom'",
        ),
        (HTTP, from_server("500", ""), ServerError, f"the server at {HTTP} gave no reason (500)"),
        (
            GRPC,
            grpc_error("RESOURCE_EXHAUSTED", "the message is too large"),
            InvalidRequest,
            "the message is too large",
        ),
        # a front's, with a page in place of Triton's JSON
        (HTTP, from_server("413", None), InvalidRequest, "the body is too large (413)"),
        *(
            (HTTP, from_server(status, None), ServerUnavailable, f"the server at {HTTP} takes no work now: {words}")
            for status, words in (
                ("429", "too many requests (429)"),
                ("502", "bad gateway (502)"),
                ("503", "unavailable (503)"),
            )
        ),
        (HTTP, from_server("504", None), Timeout, f"no answer from {HTTP} within 2.5 s; a longer timeout may help"),
        (HTTP, from_server("500", None), ServerError, f"what answers at {HTTP} is not a Triton server (500)"),
    ],
)
def test_table(url, error, kind, message):
    got = translate(error, url, 2.5)
    assert type(got) is kind
    assert str(got) == message


@pytest.mark.parametrize(
    ("message", "cleaned"),
    [
        ("[StatusCode.INVALID_ARGUMENT] in ensemble 'mask2former', bad", "bad"),
        ("in ensemble 'a', in ensemble 'b', bad", "bad"),
        ("class 'in ensemble' is not known", "class 'in ensemble' is not known"),  # only at the start
        ("[1, 2] is not a class", "[1, 2] is not a class"),
        ("", ""),
    ],
)
def test_clean(message, cleaned):
    assert clean(message) == cleaned


def test_what_lies_below_what_a_library_raises():
    error = httpcore.ReadError()
    error.__context__ = ConnectionResetError(104, "reset")
    assert str(translate(error, HTTP, None)) == f"the server at {HTTP} closed the connection"


@KINDS
@SCHEMES
def test_nobody_listens(kind, scheme):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{probe.getsockname()[1]}"
        message = rf"at {url} \(Connection refused\); start one with: m2f serve"
        with pytest.raises(ServerUnavailable, match=message) as caught:
            ask_once(kind, predict, url)
        assert caught.value.__cause__ is not None


@KINDS
@SCHEMES
def test_a_server_that_never_answers(kind, scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Timeout, match=r"within 0\.1 s"):
        ask_once(kind, predict, f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)


@KINDS
def test_the_wrong_protocol(kind):
    with fake_triton("grpc") as server, pytest.raises(ServerUnavailable, match=r"is it the gRPC port \(grpc://\)"):
        ask_once(kind, predict, f"http://{server.address}")
    with (
        fake_triton("http") as server,
        pytest.raises(ServerUnavailable, match=rf"is it the HTTP port, http://{server.address}\?"),
    ):
        ask_once(kind, predict, f"grpc://{server.address}")


def test_http_in_a_thread_has_the_same_timeout_and_the_next_call_works_on():
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(f"http://127.0.0.1:{silent.getsockname()[1]}") as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        for _ in range(3):
            with pytest.raises(Timeout, match=r"within 0\.05 s"):
                pool.submit(client.predict, b"x", timeout=0.05).result()


@pytest.mark.parametrize("timeout", [0, -1, "1", True, float("nan")])
def test_timeouts_that_are_none(timeout):
    with pytest.raises(InvalidRequest, match="seconds > 0"):
        Client("http://127.0.0.1", timeout=timeout)


def test_a_thread_that_finds_no_server_ends_quietly():
    code = textwrap.dedent("""
        import threading
        from m2f_client import Client, ServerUnavailable

        def work():
            with Client("http://127.0.0.1:1") as client:
                try:
                    client.predict(b"x")
                except ServerUnavailable:
                    print("away")

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("away\n", "")
