"""Kills and stops under load, on the real server: short forms in `make test-more`, long ones in `make chaos`."""

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from chaos_report import report
from exposition import read
from load import HUNG, OK, WRONG, Load, learn, summary
from supervised import supervised
from tritonclient.utils import InferenceServerException

from m2f.errors import M2FError
from m2f_client import Client

pytestmark = pytest.mark.server

OUTPUTS = [
    ("num_instances", "scores", "labels", "boxes", "rle", "size"),
    ("masks",),
    ("packed_masks",),
    ("panoptic", "segments"),
    ("semantic",),
    ("cls_logits", "mask_logits"),
]
SIGNALS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP]


def long(value, seconds):
    return pytest.param(value, marks=[pytest.mark.chaos, pytest.mark.timeout(seconds)])


def kill_and_wait(running, rng):
    """Do to the stub of a random step what a random signal does; return seconds to detected and to healed."""
    stubs = running.stubs()
    model = rng.choice(sorted(stubs))
    number = rng.choice(SIGNALS)
    began = time.time()
    os.kill(stubs[model].pid, number)
    lost = running.wait_for("stub_lost", since=began, model=model)
    running.wait_for("reloaded", since=began, model=model)
    ready = running.wait_for("ready", since=lost["at"])
    assert running.probe("ready")[0] == 200
    return lost["at"] - began, ready["at"] - began


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.more), long(100, 1800)])
def test_stubs_killed_under_load(tmp_path, image_files, kills):
    rng = random.Random(7)
    with supervised(tmp_path) as running:
        cases = learn(running, image_files, *OUTPUTS)
        loads = [Load(running.grpc_url, cases, workers=2), Load(running.http_url, cases, protocol="http", workers=1)]
        before = footprint(running)
        with loads[0], loads[1]:
            times = []
            for _ in range(kills):
                times.append(kill_and_wait(running, rng))
                time.sleep(rng.uniform(0.1, 0.5))
        assert not [event for event in running.events() if event["event"] == "server_ended"]
        grown = {name: round((after - before[name]) / kills, 2) for name, after in footprint(running).items()}
        seconds = running.terminate()
        assert running.process.returncode == 0
    outcomes = [outcome for load in loads for outcome in load.outcomes]
    print(f"\n{summary(outcomes)}")
    kinds = [outcome.kind for outcome in outcomes]
    assert kinds.count(WRONG) == kinds.count(HUNG) == 0
    assert kinds.count(OK) > kills
    assert all(outcome.message for outcome in outcomes if outcome.kind != OK)
    if kills > 3:  # the short form judges no machine
        detected, healed = (max(values) for values in zip(*times, strict=True))
        assert detected <= 2
        assert healed <= 5
        report(
            f"{kills} kills (SIGKILL, SIGSEGV, SIGSTOP) of any step's stub under load",
            {
                "detected_s_max": round(detected, 2),
                "healed_s_max": round(healed, 2),
                "healed_s_mean": round(sum(after for _, after in times) / kills, 2),
                "requests": len(outcomes),
                "errors": len(outcomes) - kinds.count(OK),
                "longest_error_s": round(max(o.end - o.start for o in outcomes if o.kind != OK), 1),
                "wrong": 0,
                "hung": 0,
                **{f"{name}_per_kill": value for name, value in grown.items()},
                "exit_s": round(seconds, 1),
            },
        )


def footprint(running):
    """What the server holds: its own memory, shared memory and ended children that it has not asked for."""
    return {
        "server_mb": running.server.memory_info().rss / 2**20,
        "shared_memory_mb": sum(path.stat().st_blocks for path in Path("/dev/shm").glob(f"{running.name}*")) / 2048,
        "zombies": sum(child.status() == psutil.STATUS_ZOMBIE for child in running.server.children()),
    }


GONE = ("has no available versions", "unknown model", "is not ready")


def refused(outcome):
    """The answer to a request that was never let in: the model is gone, or nobody listens any more."""
    nobody = ("ConnectionRefusedError", "ConnectionResetError", "BrokenPipeError", "RemoteDisconnected")
    return (
        any(words in outcome.message for words in GONE)
        or outcome.status in nobody
        or outcome.status in ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED")  # as gRPC's queue ends
    )


def stop_under_load(tmp_path, cases, rate, rng):
    """Start, send SIGTERM under load; return seconds to the end and the outcomes before and after the signal."""
    with supervised(tmp_path) as running:
        http = Load(running.http_url, cases, protocol="http", workers=4, rate=rate / 2)
        with Load(running.grpc_url, cases, workers=4, rate=rate / 2) as grpc, http:
            time.sleep(rng.uniform(0.5, 1.5))
            began = time.monotonic()
            seconds = running.terminate()
        assert running.process.returncode == 0
        assert running.wait_for("drained", since=0)["all_answered"] == "True"

    def late(outcome):
        """Whether it came after the signal; one begun just before may do so, and find the model gone."""
        just_before = outcome.start > began - 0.5 and any(words in outcome.message for words in GONE)
        return outcome.start >= began or just_before

    outcomes = grpc.outcomes + http.outcomes
    return seconds, [o for o in outcomes if not late(o)], [o for o in outcomes if late(o)]


@pytest.mark.parametrize("stops", [pytest.param(1, marks=pytest.mark.more), long(50, 3600)])
def test_sigterm_under_load(tmp_path, image_files, stops):
    rng = random.Random(11)
    with supervised(tmp_path) as running:
        cases = learn(running, image_files, *OUTPUTS)
        with Load(running.grpc_url, cases, workers=4) as load:
            time.sleep(5)
    done = [outcome for outcome in load.outcomes if outcome.kind == OK]
    rate = 0.8 * len(done) / (done[-1].end - done[0].start)
    slowest, admitted, late = 0.0, [], []
    for _ in range(stops):
        seconds, before, after = stop_under_load(tmp_path, cases, rate, rng)
        slowest = max(slowest, seconds)
        admitted += before
        late += after
    assert admitted
    assert [o for o in admitted if o.kind != OK] == []
    assert [o for o in late if o.kind != OK and not refused(o)] == []
    if stops > 1:
        assert slowest <= 30
        report(
            f"{stops} SIGTERMs under 80% load",
            {
                "load_per_s": round(rate, 1),
                "admitted": len(admitted),
                "admitted_failed": 0,
                "answered_after_signal": sum(o.kind == OK for o in late),
                "refused_after_signal": sum(o.kind != OK for o in late),
                "exit_s_max": round(slowest, 1),
                "orphans": 0,
                "shared_memory_left": 0,
            },
        )


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_killed_server_is_started_again_each_time(tmp_path, image_files):
    numbers = 3 * [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP]
    back = []
    with supervised(tmp_path) as running:
        cases = learn(running, image_files, *OUTPUTS)
        with Load(running.grpc_url, cases, workers=2, pause=0.1) as load:
            for number in numbers:
                began = time.time()
                os.kill(running.server.pid, number)
                back.append(running.wait_for("ready", since=began)["at"] - began)
                time.sleep(1)
        assert read(running.at_health("metrics")).total("m2f_restarts_total") == len(numbers)
    print(f"\n{summary(load.outcomes)}")
    kinds = [outcome.kind for outcome in load.outcomes]
    assert kinds.count(WRONG) == kinds.count(HUNG) == 0
    report(
        f"{len(numbers)} kills of the server under load (SIGKILL, SIGSEGV, SIGABRT, SIGSTOP)",
        {
            "ready_again_s_max": round(max(back), 1),
            "requests": len(kinds),
            "errors": len(kinds) - kinds.count(OK),
            "wrong": 0,
            "hung": 0,
        },
    )


def classify(url, image):
    """Send the request that ends Triton 2.51: the output parameter `classification` on an output of bytes."""
    tensor = triton.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], object))
    with triton.InferenceServerClient(url) as client, contextlib.suppress(InferenceServerException):
        client.infer(
            "mask2former", [tensor], outputs=[triton.InferRequestedOutput("rle", class_count=3)], client_timeout=10
        )


def answered(url, image, *, within=60):
    """Send a good request until it is answered, and return how many seconds that took."""
    began = time.monotonic()
    while True:
        try:
            with Client(f"grpc://{url}", timeout=10) as client:
                client.predict(image)
            return time.monotonic() - began
        except M2FError:
            assert time.monotonic() - began < within


@pytest.mark.parametrize("requests", [pytest.param(3, marks=pytest.mark.more), long(20, 600)])
def test_requests_that_end_the_server_do_not_end_the_service(tmp_path, image_files, requests):
    with supervised(tmp_path) as running:
        seconds, due = [], time.monotonic()
        for _ in range(requests):
            time.sleep(max(0.0, due - time.monotonic()))
            due = time.monotonic() + 2
            classify(running.grpc_url, image_files[0])
            seconds.append(answered(running.grpc_url, image_files[0]))
        assert running.process.poll() is None
        ended = [event for event in running.events() if event["event"] == "server_ended"]
        assert len(ended) == requests
    if requests > 3:
        assert max(seconds) <= 10
        report(
            f"{requests} requests that end the server, one every 2 s",
            {"good_request_answered_s_max": round(max(seconds), 1), "restarts": len(ended)},
        )


def cancel_many(url, image, calls):
    """Cancel unary calls soon after they were sent, on eight connections: Triton 2.51 aborts, or freezes."""

    def work():
        tensor = triton.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], object))
        with triton.InferenceServerClient(url) as client, contextlib.suppress(InferenceServerException):
            for number in range(calls // 8):
                call = client.async_infer("mask2former", [tensor], lambda **_: None)
                time.sleep(0.002 + number % 5 * 0.002)
                call.cancel()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_server_that_cancelled_calls_froze_or_ended_is_replaced_soon(tmp_path, image_files):
    """Triton may survive a round of calls; then there is nothing to recover from."""
    frozen, ended, unready = 0, 0, []
    with supervised(tmp_path) as running:
        for _ in range(6):
            began = time.time()
            cancel_many(running.grpc_url, image_files[0], 1200)
            with contextlib.suppress(AssertionError):
                why = running.wait_for("server_ended", since=began, timeout=15)
                frozen += "hangs" in why["why"]
                ended += 1
                unready.append(running.wait_for("ready", since=why["at"])["at"] - began)
    assert ended
    assert max(unready) <= 15
    report(
        "1,200 cancelled gRPC calls, six times",
        {"ended_or_froze": ended, "of_them_froze": frozen, "calls_to_ready_again_s_max": round(max(unready), 1)},
    )
