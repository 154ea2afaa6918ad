"""Kills and stops under load, on the real server: short forms in `make test-more`, long ones in `make chaos`."""

import os
import random
import signal
import time
from pathlib import Path

import psutil
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
def test_a_killed_server_is_restarted_until_it_is_a_crash_loop(tmp_path, image_files):
    numbers = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP, signal.SIGKILL]
    back = []
    with supervised(tmp_path) as running:
        cases = learn(running, image_files, *OUTPUTS)
        with Load(running.grpc_url, cases, workers=2, pause=0.1) as load:
            for number in numbers[:-1]:
                began = time.time()
                os.kill(running.server.pid, number)
                back.append(running.wait_for("ready", since=began)["at"] - began)
                time.sleep(1)
        os.kill(running.server.pid, numbers[-1])
        assert running.process.wait(30) == 1
        assert "gave up: 5 times in a row" in running.log()
    print(f"\n{summary(load.outcomes)}")
    kinds = [outcome.kind for outcome in load.outcomes]
    assert kinds.count(WRONG) == kinds.count(HUNG) == 0
    report(
        "4 kills of the server under load (SIGKILL, SIGSEGV, SIGABRT, SIGSTOP); the 5th gives up",
        {
            "ready_again_s_max": round(max(back), 1),
            "requests": len(kinds),
            "errors": len(kinds) - kinds.count(OK),
            "wrong": 0,
            "hung": 0,
            "exit_code": 1,
        },
    )
