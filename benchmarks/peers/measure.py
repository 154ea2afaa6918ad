"""The cells: each peer with each setting, at each number of requests in flight, in interleaved rounds."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.frame import Part, Row
from benchmarks.frame.load import closed_loop

from . import report
from .catalog import EMBEDDED, M2F, MMDET, PEERS, R50, SCRIPT, SCRIPT_OPENVINO, Peer
from .service import Running, running

IN_FLIGHT = {EMBEDDED: (1, 2, 4, 8, 16), R50: (1, 4)}
SECONDS = {EMBEDDED: 1.5, R50: 12.0}
ROUNDS = {EMBEDDED: 2, R50: 1}
QUICK = (M2F, SCRIPT, SCRIPT_OPENVINO, MMDET)
BARE_IN_FLIGHT = (1, 2, 4)  # more callers than cores change nothing


def part(*, quick: bool) -> Part:
    """Return the benchmark; `quick` takes four peers once at 1 and 8 in flight, for a second, without the R50."""
    models = (EMBEDDED,) if quick else (EMBEDDED, R50)
    cells = [cell for model in models for cell in _cells(model, quick)]
    return Part(
        name="peers",
        title="m2f and its peers, on the same cores",
        about=report.ABOUT,
        cells=cells,
        measure=lambda stage, **cell: [_measure(stage, cell["model"], cell["in_flight"], quick)],
        shared=("model", "round", "peer", "setting"),
        stage=_stage,
        limit_s=600,  # the first use of the R50 exports it
        tables=report.tables,
        draw=report.draw,
    )


def _cells(model: str, quick: bool) -> Iterator[Row]:
    for number in range(1 if quick else ROUNDS[model]):
        for peer in _peers(model, quick):
            for in_flight in _in_flight(peer, model, quick):
                yield {
                    "model": model,
                    "round": number + 1,
                    "peer": peer.name,
                    "setting": peer.setting,
                    "in_flight": in_flight,
                }


def _peers(model: str, quick: bool) -> list[Peer]:
    """Return the peers of a model with all their settings, or four with one setting each."""
    if not quick:
        return [peer for peer in PEERS if model in peer.models]
    return [next(peer for peer in PEERS if peer.name == name) for name in QUICK]


def _in_flight(peer: Peer, model: str, quick: bool) -> tuple[int, ...]:
    wanted = (1, 8) if quick else IN_FLIGHT[model]
    return tuple(number for number in wanted if peer.kind != "bare" or number in BARE_IN_FLIGHT)


@contextmanager
def _stage(**cell: Any) -> Iterator[Running]:
    peer = next(one for one in PEERS if (one.name, one.setting) == (cell["peer"], cell["setting"]))
    with running(peer, cell["model"]) as service:
        yield service


def _measure(service: Running, model: str, in_flight: int, quick: bool) -> Row:
    """Time a service, and what it uses meanwhile; the processor time is that of all requests, warm-up included."""
    sent = itertools.count()
    lock = threading.Lock()

    def send(number: int) -> None:
        service.send(number)
        with lock:
            next(sent)

    seconds = 1.0 if quick else SECONDS[model]
    before, _ = service.usage()
    times = closed_loop(send, in_flight=in_flight, seconds=seconds, warm_up_s=seconds / 4)
    after, memory_mb = service.usage()
    row: Row = {
        **times,
        "cpu_ms": (after - before) / next(sent) * 1e3,
        "memory_mb": memory_mb,
        "bytes_sent": service.bytes_sent,
        "bytes_answered": service.bytes_answered,
    }
    return {**row, **(service.equality._asdict() if service.equality else {})}
