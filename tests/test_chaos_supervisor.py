"""Kills and stops under load, on the real server: a short form of each always, the long one with `make chaos`."""

import os
import random
import signal
import time

import pytest
from chaos_report import report
from load import HUNG, OK, WRONG, Load, learn, summary
from supervised import supervised

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


@pytest.mark.parametrize("kills", [3, long(100, 1800)])
def test_stubs_killed_under_load(tmp_path, image_files, kills):
    rng = random.Random(7)
    with supervised(tmp_path) as running:
        cases = learn(running, image_files, *OUTPUTS)
        loads = [Load(running.grpc_url, cases, workers=2), Load(running.http_url, cases, protocol="http", workers=1)]
        with loads[0], loads[1]:
            times = []
            for _ in range(kills):
                times.append(kill_and_wait(running, rng))
                time.sleep(rng.uniform(0.1, 0.5))
        assert not [event for event in running.events() if event["event"] == "server_ended"]
        seconds = running.terminate()
        assert running.process.returncode == 0
    outcomes = [outcome for load in loads for outcome in load.outcomes]
    print(f"\n{summary(outcomes)}")
    kinds = [outcome.kind for outcome in outcomes]
    assert kinds.count(WRONG) == kinds.count(HUNG) == 0
    assert kinds.count(OK) > kills
    assert all(outcome.message for outcome in outcomes if outcome.kind != OK)
    detected, healed = (max(values) for values in zip(*times, strict=True))
    generous = 1 if kills > 3 else 6
    assert detected <= 2 * generous
    assert healed <= 5 * generous
    if kills > 3:
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
                "exit_s": round(seconds, 1),
            },
        )


def refused(outcome):
    """The answer to a request that was never let in: the model is gone, or nobody listens any more."""
    gone = ("has no available versions", "unknown model", "is not ready")
    nobody = ("ConnectionRefusedError", "ConnectionResetError", "BrokenPipeError", "RemoteDisconnected")
    return (
        any(words in outcome.message for words in gone)
        or outcome.status in nobody
        or outcome.status == "StatusCode.UNAVAILABLE"
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
    outcomes = grpc.outcomes + http.outcomes
    before = [outcome for outcome in outcomes if outcome.start < began]
    return seconds, before, [outcome for outcome in outcomes if outcome.start >= began]


@pytest.mark.parametrize("stops", [1, long(50, 3600)])
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
    assert slowest <= 30
    if stops > 1:
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
