"""Mixed requests for a long time: nothing grows or gets slower; seconds in `make test-more`, minutes in `make soak`."""

import os
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from bad_images import FILES
from bad_inputs import PARAMETERS, TENSORS, Request
from chaos_report import report
from kserve import connect, image_input
from load import OK, Case, Load, learn, summary
from pictures import encode, photo
from supervised import supervised
from wire import GrpcWire, HttpWire

from m2f.contract import PUBLIC_MODEL, PUBLIC_TENSOR_MODEL

OUTPUTS = [
    ("num_instances", "scores", "labels", "boxes", "areas", "queries", "rle", "size"),
    ("masks",),
    ("packed_masks",),
    ("panoptic", "segments"),
    ("semantic",),
    ("cls_logits", "mask_logits"),
]
SIZES = [(1, 1), (37, 900), (480, 640), (1200, 1600)]
SHARED = "shared memory"
WARM_UP = 0.2  # share of the time after which nothing may grow
MB = 2**20


@dataclass(frozen=True)
class Sample:
    """What the server had when `requests` had been answered.

    Attributes:
        memory: MB of each process by what it runs, without what it shares; `shared memory` and a number is what it
            shares with the server, in `/dev/shm`.
        busy: seconds of processor time that all of them have used.
        held: file descriptors and threads of all of them.
    """

    requests: int
    memory: dict[str, float]
    busy: float
    held: dict[str, int]


def shared(values):
    """The sum of what is said of shared memory."""
    return sum(value for name, value in values.items() if name.startswith(SHARED))


def processes(running):
    """Every process of a supervised server, by what it runs."""
    supervisor = psutil.Process(running.process.pid)
    found = {"m2f serve": supervisor, "tritonserver": running.server, **running.stubs()}
    others = set(supervisor.children(recursive=True)) - set(found.values())
    return {**found, **{f"another ({process.pid})": process for process in others}}


def private(pid):
    """MB that a process has for itself: shared memory is counted where it lies, and files are the kernel's to drop."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss_Anon: +(\d+) kB$", rollup, re.MULTILINE)[1]) / 1024


def sample(group, shm_prefix, requests):
    """Measure a group of processes and the shared memory whose names begin so."""
    segments = sorted(Path("/dev/shm").glob(f"{shm_prefix}*"))
    memory = {name: private(process.pid) for name, process in group.items()}
    memory |= {f"{SHARED} {i}": path.stat().st_blocks * 512 / MB for i, path in enumerate(segments, 1)}
    times = [process.cpu_times() for process in group.values()]
    return Sample(
        requests=requests,
        memory=memory,
        busy=sum(spent.user + spent.system for spent in times),
        held={
            "file descriptors": sum(process.num_fds() for process in group.values()),
            "threads": sum(process.num_threads() for process in group.values()),
            "segments": len(segments),
        },
    )


def slope(samples, amount):
    """Growth of an amount in 1,000 requests, the median over all pairs of samples.

    Theil and Sen's: deaf to peaks, and to the one step that a process, flat otherwise, makes when the largest of all
    batches comes. Such steps come at another time in each process, so slopes are theirs, and added up; each shares a
    segment of its own with the server.
    """
    x, y = (np.array([f(s) for s in samples], float) for f in (lambda s: s.requests, amount))
    i, j = np.triu_indices(len(samples), 1)
    steps = x[j] - x[i]
    return float(np.median((y[j] - y[i])[steps > 0] / steps[steps > 0])) * 1000


def mixed(running, files):
    """All outputs of images, one and several at once, and of tensors; parameters."""
    cases = learn(running, files, *OUTPUTS)
    cases += learn(running, files, OUTPUTS[0], score_threshold=0.05, semantics="detectron2")
    triton = connect(running, "grpc")
    tensors = {
        "input": np.random.default_rng(7).integers(0, 256, (1, 256, 256, 3), np.uint8),
        "img_shape": np.array([[256, 200]], np.int32),
        "ori_shape": np.array([[300, 240]], np.int32),
    }
    for model, inputs in ((PUBLIC_MODEL, image_input(*files[:2])), (PUBLIC_TENSOR_MODEL, tensors)):
        for names in OUTPUTS:
            expected = triton.infer(model, inputs, names)
            cases.append(Case(f"{model}: {' '.join(names)}", model, inputs, names, expected))
    triton.client.close()
    random.Random(7).shuffle(cases)
    return cases


class Errors(threading.Thread):
    """Requests that are the client's fault, one after the other, ten a second, over both protocols in turn.

    Attributes:
        answered: how many were.
        wrong: those that were answered otherwise than they should be.
    """

    def __init__(self, running):
        super().__init__(daemon=True)
        images = [Request(PUBLIC_MODEL, image_input(file.data), file.reason) for file in FILES.values()]
        self._requests = [r for r in (*images, *TENSORS.values(), *PARAMETERS.values()) if r.reason is not None]
        random.Random(7).shuffle(self._requests)
        self._running, self._stopped = running, threading.Event()
        self.answered, self.wrong = 0, []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self.join()

    def run(self):
        wires = HttpWire(self._running), GrpcWire(self._running)
        try:
            while not self._stopped.wait(0.1):
                request = self._requests[self.answered // 2 % len(self._requests)]
                over = self.answered % 2
                answer = wires[over].send(request.message() if over else request.post())
                if not (answer.refused and re.search(request.reason, answer.message)):
                    self.wrong.append((request.reason, answer))
                self.answered += 1
        except Exception as error:
            self.wrong.append(error)
        finally:
            for wire in wires:
                wire.close()


def soak(running, cases, seconds):
    """Send everything for so long; return the samples, the outcomes and the errors."""
    grpc = Load(running.grpc_url, cases, workers=2, timeout=60)
    http = Load(running.http_url, cases, protocol="http", workers=1, timeout=60)
    group, samples = processes(running), []
    with Errors(running) as errors, grpc, http:
        started = time.monotonic()
        while (after := time.monotonic() - started) < seconds:
            if after > WARM_UP * seconds:
                requests = errors.answered + len(grpc.outcomes) + len(http.outcomes)
                samples.append(sample(group, running.name, requests))
                assert running.probe("ready")[0] == 200
            time.sleep(max(0.5, seconds / 500))
    assert processes(running) == group  # nothing died, nothing came
    outcomes = sorted(grpc.outcomes + http.outcomes, key=lambda o: o.end)
    return samples, [o for o in outcomes if o.end > started + WARM_UP * seconds], errors


def p99(outcomes):
    return float(np.percentile([(o.end - o.start) * 1e3 for o in outcomes], 99))


def in_thirds(values, measure):
    """What the first and the last third of something come to."""
    third = len(values) // 3
    return measure(values[:third]), measure(values[-third:])


def busy(samples):
    """Processor milliseconds a request."""
    return 1e3 * (samples[-1].busy - samples[0].busy) / (samples[-1].requests - samples[0].requests)


def long(minutes, *marks):
    return pytest.param(minutes, marks=[pytest.mark.chaos, pytest.mark.timeout(minutes * 60 + 300), *marks])


@pytest.mark.server
@pytest.mark.parametrize("minutes", [pytest.param(0.2, marks=pytest.mark.more), long(10), long(120, pytest.mark.soak)])
def test_nothing_grows_and_nothing_gets_slower(tmp_path, image_files, minutes):
    pictures = image_files + [encode(photo(*size), "jpg") for size in SIZES]
    with supervised(tmp_path) as running:
        cases = mixed(running, pictures if minutes > 1 else pictures[-3:-1])
        samples, outcomes, errors = soak(running, cases, minutes * 60)
        assert {event["event"] for event in running.events()} == {"ready"}
    print(f"\n{summary(outcomes)}")
    assert [o for o in outcomes if o.kind != OK] == []
    assert errors.wrong == []
    assert errors.answered
    assert all(abs(now - samples[0].held[what]) < 20 for what, now in samples[-1].held.items()), samples[-1]
    if minutes < 1:  # the short form judges no machine
        return
    parts = samples[-1].memory
    slopes = {part: round(slope(samples, lambda s, part=part: s.memory[part]), 3) for part in parts}
    grown = sum(parts.values()) - sum(samples[0].memory.values())
    (first, last), (cheap, dear) = in_thirds(outcomes, p99), in_thirds(samples, busy)
    figures = {
        "requests": samples[-1].requests,
        "of them refused": errors.answered,
        "wrong": 0,
        "memory_mb": round(sum(parts.values())),
        "grown_mb": round(grown, 1),
        "mb_in_1000_requests": round(sum(slopes.values()), 3),
        "shared_memory_mb_in_1000_requests": round(shared(slopes), 3),
        "p99_ms_first_third": round(first),
        "p99_ms_last_third": round(last),
        "processor_ms_a_request_first_third": round(cheap, 1),
        "processor_ms_a_request_last_third": round(dear, 1),
    }
    print(f"{figures}\nMB in 1,000 requests by process: {slopes}\n{samples[0]}\n{samples[-1]}")
    assert figures["mb_in_1000_requests"] <= 1, slopes
    assert last <= 1.5 * first
    assert dear <= 1.2 * cheap
    report(f"soak of {minutes} minutes: all outputs, sizes and errors, mixed", figures)


def test_the_slope_is_that_of_the_growth():
    rng = np.random.default_rng(7)
    grows = [Sample(100 * i, {"a": 50 + 0.2 * i + rng.normal()}, 0.0, {}) for i in range(200)]
    stairs = [Sample(100 * i, {"a": 50 + 4 * (i // 20) + rng.normal()}, 0.0, {}) for i in range(200)]
    assert slope(grows, lambda s: s.memory["a"]) == pytest.approx(2, abs=0.1)
    assert slope(stairs, lambda s: s.memory["a"]) == pytest.approx(2, abs=0.1)
    for steady in (lambda i: 40 * (i % 50 == 0) + rng.normal(), lambda i: 40 * (i > 120) + rng.normal(scale=0.01)):
        samples = [Sample(100 * i, {"a": 50 + steady(i)}, 0.0, {}) for i in range(200)]
        assert abs(slope(samples, lambda s: s.memory["a"])) < 0.1


TAKES_32_MB = """
import mmap
print("before", flush=True)
input()
taken = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE)
for page in range(0, len(taken), mmap.PAGESIZE):
    taken[page] = 1
print("after", flush=True)
input()
"""


def test_what_is_taken_is_seen():
    name = f"m2f-soak-test-{os.getpid()}"
    segment = Path("/dev/shm", name)
    command = [sys.executable, "-c", TAKES_32_MB]  # a process of its own, which takes nothing else meanwhile
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        here = {"this": psutil.Process(process.pid)}
        assert process.stdout.readline() == "before\n"
        before = sample(here, name, 0)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "after\n"
        try:
            segment.write_bytes(bytes(16 * MB))
            after = sample(here, name, 1)
        finally:
            segment.unlink()
        process.communicate("\n")
    assert after.memory["this"] - before.memory["this"] == pytest.approx(32, abs=1)
    assert shared(after.memory) == pytest.approx(16, abs=1)
    assert after.held["segments"] == 1
