"""Triton's OpenTelemetry traces of the ensemble, as docs/observability.md sets them up, sent to a collector of ours."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from exposition import wait_until
from pictures import encode, photo

from m2f_client import Client
from m2f_server import serve

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[1]
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STEPS = ("mask2former_preprocess", "mask2former_engine", "mask2former_postprocess")


@contextmanager
def collector():
    """An OTLP/HTTP endpoint: yields its address and the spans that came, each with its attributes as a dict."""
    spans = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            for of_resource in body["resourceSpans"]:
                resource = plain(of_resource["resource"])
                for of_scope in of_resource["scopeSpans"]:
                    spans.extend({**span, **plain(span), "resource": resource} for span in of_scope["spans"])
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    def plain(owner):
        return {item["key"]: next(iter(item["value"].values())) for item in owner.get("attributes", [])}

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{endpoint.server_port}/v1/traces", spans
        endpoint.shutdown()


@pytest.fixture(scope="module")
def traced():
    """A server that traces the requests of callers that trace, and the spans that it sends."""
    with collector() as (url, spans):
        settings = [
            "mode=opentelemetry",
            "level=TIMESTAMPS",
            "rate=0",
            f"opentelemetry,url={url}",
            "opentelemetry,resource=service.name=m2f",
            "opentelemetry,bsp_schedule_delay=100",
        ]
        with serve(
            model_repository=ROOT / "model_repository",
            config_name="cpu",
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            extra_args=[*(f"--trace-config={setting}" for setting in settings), "--exit-timeout-secs=1"],
        ) as running:
            yield running, spans


def trace(client, spans, count):
    """Send a request and return the spans of its trace; once more if they do not come: an export is not repeated."""
    for _ in range(20):
        spans.clear()
        client.predict(encode(photo()))
        if len(seen := wait_until(lambda seen: len(seen) >= count, lambda: list(spans), within=3)) >= count:
            break
    return seen


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_trace_of_a_caller_goes_through_every_step(traced, protocol):
    server, spans = traced
    url = f"{protocol}://{getattr(server, protocol + '_url')}"
    names = ["InferRequest", "mask2former", *STEPS, *["compute"] * len(STEPS)]
    with Client(url) as untraced, Client(url, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"}) as client:
        untraced.predict(encode(photo()))
        seen = trace(client, spans, len(names))

    assert sorted(span["name"] for span in seen) == sorted(names)
    assert {span["traceId"] for span in seen} == {TRACE}
    assert {span["resource"]["service.name"] for span in seen} == {"m2f"}
    by_name = {span["name"]: span for span in seen}
    assert by_name["InferRequest"]["parentSpanId"] == CALLER
    assert by_name["mask2former"]["parentSpanId"] == by_name["InferRequest"]["spanId"]
    assert len(by_name["mask2former"]["triton.request_id"]) == 16
    for step in STEPS:
        assert by_name[step]["parentSpanId"] == by_name["mask2former"]["spanId"]
    parents = {span["parentSpanId"] for span in seen if span["name"] == "compute"}
    assert parents == {by_name[step]["spanId"] for step in STEPS}
