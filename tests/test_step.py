"""What the steps write to the server's log: errors, and on request everything, each with the id of its request."""

import http.client
import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from exposition import scrape, wait_until
from log_lines import parse
from pictures import encode, photo

from m2f_client import Client, InvalidRequest, ServerError
from m2f_server import serve

pytestmark = pytest.mark.server
REPOSITORY = Path(__file__).parents[1] / "model_repository"
LINE = re.compile(r'^(?P<level>[IWE])\S* .*\] (?P<text>"event=.*")$', re.MULTILINE)
STEPS = ["mask2former_preprocess", "mask2former_engine", "mask2former_postprocess", "mask2former_raw"]
BROKEN = "mask2former_masks"


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    """A server that logs every request and has a step that fails."""
    repository = tmp_path_factory.mktemp("step") / "models"
    shutil.copytree(REPOSITORY, repository)
    model = repository / BROKEN / "1" / "model.py"
    text, count = re.subn('"masks": make', '"masks": lambda: 1 / 0', model.read_text())
    assert count == 1
    model.write_text(text)
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("M2F_LOG_REQUESTS", "1")
            running = stack.enter_context(
                serve(
                    model_repository=repository,
                    config_name="cpu",
                    http_port=0,
                    grpc_port=0,
                    metrics_port=0,
                    extra_args=["--exit-timeout-secs=1"],
                )
            )
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(request, talkative):
    with Client(f"{request.param}://{getattr(talkative, request.param + '_url')}") as connected:
        yield connected


def logged(server, count, **fields):
    """The lines that have these fields, as (level, fields), once there are so many; ours, as Triton quotes them."""

    def read():
        lines = [(line["level"], parse(json.loads(line["text"]))) for line in LINE.finditer(server.read_log())]
        return [(level, line) for level, line in lines if fields.items() <= line.items()]

    return wait_until(lambda lines: len(lines) >= count, read)


def test_a_refused_request_is_found_by_its_id(client, talkative):
    with pytest.raises(InvalidRequest) as refusal:
        client.predict(encode(photo()), classes="uni\ncorn kind=fault")
    ((level, line),) = logged(talkative, 1, event="error", request_id=refusal.value.request_id)
    assert level == "I"
    assert (line["model"], line["kind"]) == ("mask2former_postprocess", "parameter")
    assert line["message"] == str(refusal.value)
    assert "trace" not in line


def test_a_fault_is_logged_with_its_trace_and_names_its_request(client, talkative):
    with pytest.raises(ServerError) as fault:
        client.predict(encode(photo()), outputs=["masks"])
    assert str(fault.value).endswith(f"(request id {fault.value.request_id})")
    ((level, line),) = logged(talkative, 1, event="error", request_id=fault.value.request_id)
    assert level == "E"
    assert (line["model"], line["kind"]) == (BROKEN, "fault")
    assert line["message"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in line["trace"]
    assert "1 / 0" in line["trace"]
    wait_until(bool, lambda: scrape(talkative).total("m2f_errors_total", model=BROKEN, kind="fault"))
    assert scrape(talkative).total("m2f_errors_total", model=BROKEN, kind="fault") > 0


def test_an_output_that_is_not_asked_for_is_not_made(client):
    """One model makes both kinds of masks, and fails at one."""
    assert client.predict(encode(photo()), outputs=["packed_masks"]).outputs["packed_masks"].ndim == 3


def test_one_id_leads_through_every_step(talkative):
    before = len(logged(talkative, 0, event="answered"))
    with Client(f"http://{talkative.http_url}") as client:
        client.predict(encode(photo()), outputs=["scores", "cls_logits"])
    lines = [line for _, line in logged(talkative, before + len(STEPS), event="answered")[before:]]
    assert sorted(line["model"] for line in lines) == sorted(STEPS)
    assert len({line["request_id"] for line in lines}) == 1
    assert re.fullmatch(r"[0-9a-f]{16}", lines[0]["request_id"])
    assert all(float(line["ms"]) > 0 for line in lines)


NO_TEXT = '"id": "\udcff", '  # a byte that is not UTF-8
PICTURE = '{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["no picture"]}'
CLASSES = '{"name": "inner_cls_logits", "datatype": "FP32", "shape": [1, 1, 2], "data": [0, 0]}'
MASKS = '{"name": "inner_mask_logits", "datatype": "FP32", "shape": [1, 1, 1, 1], "data": [0]}'


@pytest.mark.parametrize(
    ("model", "inputs", "status"),
    [("mask2former", PICTURE, 400), ("mask2former_raw", f"{CLASSES}, {MASKS}", 200)],
)
def test_an_id_that_is_no_text_is_no_obstacle(talkative, model, inputs, status):
    body = f'{{{NO_TEXT}"inputs": [{inputs}]}}'.encode(errors="surrogateescape")
    connection = http.client.HTTPConnection(talkative.http_url)
    connection.request("POST", f"/v2/models/{model}/infer", body)
    response = connection.getresponse()
    assert (response.status, b"UnicodeDecodeError" in response.read()) == (status, False)
    connection.close()
    assert logged(talkative, 1, event="error" if status == 400 else "answered", request_id="?")


def test_answers_are_not_logged_unless_asked_for(server):
    with Client(f"http://{server.http_url}") as client:
        client.predict(encode(photo()))
        with pytest.raises(InvalidRequest) as refusal:
            client.predict(b"")
    assert logged(server, 1, event="error", request_id=refusal.value.request_id)
    assert not logged(server, 0, event="answered")
