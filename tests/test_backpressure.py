"""How preprocessing waits for the queues behind it, and that requests do not get stuck in any."""

import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
from conftest import IMAGES
from kserve import connect, image_input
from listen import listen_http

from m2f.contract import PUBLIC_MODEL
from m2f_backend.backpressure import LONGEST, METRICS, Backpressure

MODEL = "mask2former_preprocess"


class Clock:
    """A clock that moves only when `sleep` is called; `naps` counts the calls."""

    now, naps = 100.0, 0

    def sleep(self, seconds):
        self.now += seconds
        self.naps += 1


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics(monkeypatch):
    """A server that answers with metrics in the words of Triton."""

    class Metrics:
        def __init__(self):
            self.looks, self.warnings, self.after = 0, [], {}
            self.show(mask2former_engine=0)

        def show(self, *, lost=0, **waiting):
            lines = [f'nv_inference_pending_request_count{{model="{m}",version="1"}} {n}' for m, n in waiting.items()]
            for reason, count in {"OTHER": self.looks, "BACKEND": lost}.items():
                labels = f'model="mask2former_engine",reason="{reason}",version="1"'
                lines.append(f"nv_inference_request_failure{{{labels}}} {count}")
            self.answer = "# HELP\n" + "\n".join(lines) + "\nm2f_info 1\n"

        def look(self):
            self.looks += 1
            if change := self.after.pop(self.looks, None):
                self.show(**change)
            return self.answer.encode()

    shown = Metrics()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = shown.look()
            self.send_response(200 if self.path == "/metrics" and answer else 503)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    stop, port = listen_http(Handler)
    shown.address = f"127.0.0.1:{port}"
    monkeypatch.setenv(METRICS, shown.address)
    yield shown
    stop()


def gate(metrics, clock):
    return Backpressure(MODEL, metrics.warnings.append, now=lambda: clock.now, sleep=clock.sleep)


def test_a_look_is_good_for_as_many_requests_as_it_found_room_for(metrics, clock):
    metrics.show(mask2former_engine=3, mask2former_raw=5, mask2former_head_engine=1)
    waits = gate(metrics, clock)
    for _ in range(LONGEST - 5):
        waits.wait()
    assert (metrics.looks, clock.naps) == (1, 0)
    waits.wait()
    assert (metrics.looks, clock.naps) == (2, 0)


OTHERS = [{MODEL: 99}] + [
    {name: 99} for name in ("mask2former", "resnet", "my_mask2former_engine", "mask2former_left_engine", "parts_engine")
]


@pytest.mark.parametrize("others", OTHERS)
def test_only_the_queues_behind_count(metrics, clock, others):
    metrics.show(mask2former_engine=0, **others)
    gate(metrics, clock).wait()
    assert clock.naps == 0


def test_an_export_of_another_name_counts_its_own_queues(metrics, clock):
    metrics.show(parts_left_engine=0, mask2former_engine=LONGEST, parts_engine=0)
    waits = Backpressure("parts_preprocess", metrics.warnings.append, now=lambda: clock.now, sleep=clock.sleep)
    waits.wait()
    assert clock.naps == 0
    metrics.after = {2: {"parts_raw": LONGEST}, 5: {"parts_raw": 0}}
    for _ in range(LONGEST):
        waits.wait()
    assert (metrics.looks, clock.naps) == (5, 3)


@pytest.mark.parametrize("waiting", [LONGEST, LONGEST + 7])
def test_it_waits_until_there_is_room(metrics, clock, waiting):
    metrics.show(mask2former_engine=waiting)
    metrics.after = {4: {"mask2former_engine": LONGEST - 1}}
    gate(metrics, clock).wait()
    assert (metrics.looks, clock.naps) == (4, 3)


def test_versions_of_a_model_count_together(metrics, clock):
    metrics.show(mask2former_engine=LONGEST - 1)
    metrics.answer += 'nv_inference_pending_request_count{model="mask2former_engine",version="2"} 1\n'
    metrics.after = {2: {"mask2former_engine": 0}}
    gate(metrics, clock).wait()
    assert clock.naps == 1


def test_the_queue_of_a_process_that_died_does_not_count_while_its_requests_fail(metrics, clock):
    full = {"mask2former_engine": LONGEST}
    metrics.show(**full)
    metrics.after = {3: {"lost": 8, **full}, 4: {"lost": 8, "mask2former_raw": LONGEST, **full}}
    waits = gate(metrics, clock)
    for _ in range(LONGEST):
        waits.wait()
    assert (metrics.looks, clock.naps) == (3, 2)
    metrics.after[9] = {"lost": 8, **full}  # the other queues count
    waits.wait()
    assert (metrics.looks, clock.naps) == (9, 7)
    clock.now += 3  # and it, too, when nothing fails any more
    for _ in range(LONGEST):
        waits.wait()
    assert clock.now > 130


def test_it_does_not_wait_for_ever(metrics, clock):
    metrics.show(mask2former_engine=LONGEST)
    waits = gate(metrics, clock)
    for _ in range(2):
        before = clock.now
        waits.wait()
        assert 30 <= clock.now - before < 31
    assert metrics.warnings == []


def test_queues_that_are_not_seen_are_taken_for_empty(metrics, clock):
    metrics.answer = ""
    waits = gate(metrics, clock)
    for _ in range(3 * LONGEST):
        waits.wait()
    assert (metrics.looks, clock.naps) == (3, 0)
    [warning] = metrics.warnings
    assert f"M2F_METRICS={metrics.address}" in warning
    assert "503" in warning
    clock.now += 11
    waits.wait()
    assert len(metrics.warnings) == 2


def test_metrics_of_somebody_else_are_no_metrics(metrics, clock):
    metrics.show(resnet=0)
    gate(metrics, clock).wait()
    assert clock.naps == 0
    assert len(metrics.warnings) == 1


@pytest.mark.chaos
@pytest.mark.server
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_no_request_is_stuck_in_a_queue(server, protocol):
    """Triton looks twice a second at requests whose wake-up it lost: gaps of 0.5 s where nothing else is to come."""
    image = image_input(min((path.read_bytes() for path in IMAGES), key=len))
    gaps = []
    for _ in range(3):
        with ThreadPoolExecutor(24) as pool:

            def ask(_):
                connect(server, protocol).infer(PUBLIC_MODEL, image, ["num_instances"])
                return time.monotonic()

            gaps += np.diff(sorted(pool.map(ask, range(24)))).tolist()
    stuck = [gap for gap in gaps if 0.495 < gap < 0.515]  # those of a slow machine are of any length
    assert len(stuck) <= 2, sorted(gaps)[-9:]
