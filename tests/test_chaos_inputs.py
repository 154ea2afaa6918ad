"""Damaged images and bodies against the real server: a few in `make test-more`, 20,000 and more in `make chaos`."""

import random
import threading
import time
from collections import Counter

import numpy as np
import pytest
from bad_bodies import GRPC, HTTP
from bad_images import JPEG, JPEGS, PNGS, PROGRESSIVE, WEBPS, fill_bytes_in_a_scan, packed_megabytes
from bad_inputs import PARAMETERS, TENSORS, Request
from chaos_report import report
from conftest import IMAGES
from harm import Harm
from kserve import connect, image_input
from mutate import mutated, mutated_post
from wire import GrpcWire, HttpWire

from m2f.contract import PUBLIC_MODEL
from m2f.errors import InputError
from m2f.image import decode_image
from m2f.limits import MAX_PIXELS

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore")]

WARM_UP = 0.1  # share of the inputs after which memory must not grow


def is_image(data):
    """What the decoder says of a file in this process."""
    try:
        decode_image(data, max_pixels=MAX_PIXELS)
    except InputError:
        return False
    return True


def images(rng, count, over):
    """Damaged files, and whether they are images all the same."""
    good = [f.data for f in {**JPEGS, **PNGS, **WEBPS}.values() if f.reason is None]
    files = [data for data in good if len(data) < 50_000]
    for _ in range(count):
        data = mutated(rng, rng.choice(files), files)
        request = Request(PUBLIC_MODEL, image_input(data), None)
        yield (request.post() if over == "http" else request.message()), is_image(data)


def bodies(rng, count, over):
    """Damaged bodies; None: some of them are still good."""
    quick = [r for r in TENSORS.values() if r.outputs == ("num_instances",) and len(r.inputs.get("input", ())) < 8]
    requests = [*quick, *(r for r in PARAMETERS.values() if len(str(r.parameters)) < 5000)]
    if over == "http":
        whole = [r.post() for r in requests] + [w.sent for w in HTTP.values() if len(w.sent.body) < 10_000]
        parts = [post.body[:2000] for post in whole]
    else:
        sent = [r.message() for r in requests] + [w.sent for w in GRPC.values()]
        whole = [s if isinstance(s, bytes) else s.SerializeToString() for s in sent]
        parts = [message[:2000] for message in whole]
    for _ in range(count):
        one = rng.choice(whole)
        yield (mutated_post if over == "http" else mutated)(rng, one, parts), None


def send_all(server, over, inputs, wrong, seen):
    """Send inputs one by one; note what was answered otherwise than it should be."""
    wire = {"http": HttpWire, "grpc": GrpcWire}[over](server)
    try:
        for sent, good in inputs:
            answer = wire.send(sent)
            seen[over, answer.status] += 1
            right = answer.accepted if good else answer.refused if good is False else answer.accepted or answer.refused
            if not right:
                wrong.append((over, good, answer, str(sent)[:2000]))
    except Exception as error:
        wrong.append((over, error))
    finally:
        wire.close()


def storm(server, make, seed, count):
    """Half of `count` inputs over each protocol, at the same time; what went wrong, and how often each status came."""
    wrong, seen = [], Counter()
    threads = [
        threading.Thread(
            target=send_all, args=(server, over, make(random.Random(f"{over} {seed}"), count // 2, over), wrong, seen)
        )
        for over in ("http", "grpc")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong, seen


def long(values, seconds):
    return pytest.param(*values, marks=[pytest.mark.chaos, pytest.mark.timeout(seconds)])


@pytest.mark.parametrize(
    ("what", "make", "count"),
    [
        pytest.param("images", images, 200, marks=pytest.mark.more),
        pytest.param("bodies", bodies, 100, marks=pytest.mark.more),
        long(("images", images, 20_000), 1800),
        long(("bodies", bodies, 4000), 600),
    ],
)
def test_nothing_damaged_does_harm(server, what, make, count):
    triton, golden = connect(server, "grpc"), image_input(IMAGES[0].read_bytes())
    before = triton.infer(PUBLIC_MODEL, golden)
    started = time.monotonic()
    warm_up, seen = storm(server, make, "warm up", int(count * WARM_UP))
    harm = Harm(server)
    wrong, more = storm(server, make, "then", count - int(count * WARM_UP))
    assert warm_up + wrong == []
    assert harm.died() == []
    grown = harm.grown()  # counts in the long forms only
    after = triton.infer(PUBLIC_MODEL, golden)
    triton.client.close()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    if count > 1000:
        statuses = {f"{over} {status}": number for (over, status), number in sorted((seen + more).items())}
        figures = {"inputs": count, "seconds": round(time.monotonic() - started), **statuses, "dead stubs": 0}
        report(f"bad inputs: damaged {what}", {**figures, "grown_mb": round(grown / 1e6, 1)})
        assert grown < 64 << 20


@pytest.mark.chaos
def test_a_file_built_to_take_long_is_refused_soon(server):
    """At the largest size that is accepted; the short forms are in `bad_images`."""
    files = {
        "fill_bytes": fill_bytes_in_a_scan((64 << 20) - len(JPEG)),
        "progressive_fill_bytes": fill_bytes_in_a_scan((64 << 20) - len(PROGRESSIVE), of=PROGRESSIVE),
        "profiles": packed_megabytes(b"iCCP", 15_000),
        "texts": packed_megabytes(b"zTXt", 15_000, b"1234"),
    }
    wire, figures = GrpcWire(server), {}
    for name, data in files.items():
        started = time.monotonic()
        answer = wire.send(Request(PUBLIC_MODEL, image_input(data), None).message())
        figures[f"{name}_mb"], figures[f"{name}_s"] = round(len(data) / 1e6), round(time.monotonic() - started, 1)
        assert answer.refused, answer
    wire.close()
    report("bad inputs: files built to take long", figures)
    assert max(value for name, value in figures.items() if name.endswith("_s")) <= 2
