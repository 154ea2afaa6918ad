"""The time that models were at work: each batch once, and kept while no server answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler

import pytest
from listen import listen_http
from until import until

from m2f_backend.calls import CallError
from m2f_server.access import Access
from m2f_server.busy import BusyMetric
from m2f_server.control import Control

STEP_S = 0.001


def exported(metric):
    (family,) = metric.collect()
    assert {sample.name for sample in family.samples} <= {"m2f_busy_seconds_total"}
    return {(sample.labels["model"], sample.labels["version"]): sample.value for sample in family.samples}


def phases(count, milliseconds):
    return {
        f"compute_{phase}": {"count": count, "ns": int(share * milliseconds * 1e6)}
        for phase, share in (("input", 0.1), ("infer", 0.8), ("output", 0.1))
    }


@pytest.fixture
def control():
    """A server's control whose statistics are those of 3 batches of 8 and 5 of one, and of a model that did nothing."""
    sizes = [{"batch_size": 8, **phases(3, 600)}, {"batch_size": 1, **phases(5, 150)}]
    engine = {"name": "a_engine", "version": "2", "inference_stats": phases(29, 4950), "batch_stats": sizes}
    body = json.dumps({"model_stats": [engine, {"name": "a_raw", "version": "1"}]}).encode()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/v2/models/stats"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    stop, port = listen_http(Answer)
    yield Control(http_url=f"127.0.0.1:{port}", metrics_url="", access=Access())
    stop()


def test_a_batch_counts_once_whatever_its_size(control):
    assert control.busy_seconds() == pytest.approx({("a_engine", "2"): 0.75, ("a_raw", "1"): 0.0})


def test_values_stay_while_no_server_answers():
    answers = iter([{("a", "1"): 1.0}, CallError("timed out"), OSError("no descriptors"), {("a", "1"): 2.5}])
    seen = []

    def read():
        seen.append(exported(metric))
        answer = next(answers, {("a", "1"): 2.5})
        if isinstance(answer, Exception):
            raise answer
        return answer

    metric = BusyMetric(read)
    with metric.fresh(STEP_S):
        until(lambda: len(seen) >= 5)
    assert seen[:5] == [{}, *[{("a", "1"): 1.0}] * 3, {("a", "1"): 2.5}]


def test_a_scrape_waits_for_no_server_and_neither_does_the_end():
    asked, answered = threading.Event(), threading.Event()

    def read():
        asked.set()
        answered.wait()
        return {}

    metric = BusyMetric(read)
    with metric.fresh(STEP_S):
        assert asked.wait(20)
        assert exported(metric) == {}
    answered.set()
