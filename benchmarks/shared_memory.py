"""What shared memory saves: `Client(url, shared_memory=True)` against the wire, by outputs and protocol.

One picture of 1333 x 800 with 20 instances, one request at a time. The two ways take turns, and must give the same
bytes before they are timed.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from PIL import Image

from m2f.contract import RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f_client import Client, Result
from m2f_server import Server, serve

from .frame import Part, Row, Table
from .serving import IMAGES, REPOSITORY

OUTPUTS: dict[str, Sequence[str]] = {
    "structured": STRUCTURED_OUTPUTS,
    "raw logits": RAW_OUTPUTS,
    "packed masks": ("num_instances", "packed_masks"),
    "panoptic": ("panoptic", "segments"),
    "dense masks": ("num_instances", "masks"),
}
PARAMETERS = {"score_threshold": 0.0, "keep_top_k": 20}


def part(*, quick: bool) -> Part:
    """Return a cell for each kind of output and protocol."""
    groups = ["structured", "dense masks"] if quick else list(OUTPUTS)
    protocols = ["grpc"] if quick else ["grpc", "http"]
    return Part(
        name="shared_memory",
        title="Shared memory",
        about="`Client(url, shared_memory=True)` against the wire, one request at a time, 1333 x 800, 20 instances.",
        cells=[{"outputs": outputs, "protocol": protocol} for outputs in groups for protocol in protocols],
        stage=stage,
        measure=partial(measured, requests=10 if quick else 25),
        tables=tables,
    )


@contextmanager
def stage() -> Iterator[Server]:
    """Serve the embedded model."""
    with serve(model_repository=REPOSITORY, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


def measured(stage: Server, *, outputs: str, protocol: str, requests: int) -> list[dict[str, float]]:
    """Compare the answers of both ways, then time them in turns."""
    url = f"{protocol}://{stage.http_url if protocol == 'http' else stage.grpc_url}"
    picture = large_picture()
    with Client(url) as wire, Client(url, headers=stage.access.headers, shared_memory=True) as shared:
        size = checked(wire, shared, picture, OUTPUTS[outputs])
        on_wire, in_memory = in_turns([wire, shared], picture, OUTPUTS[outputs], requests)
    return [{"bytes": size, "wire_ms": on_wire, "shared_ms": in_memory, "times_faster": on_wire / in_memory}]


def large_picture() -> bytes:
    """Return an example scene as a JPEG of 1333 x 800."""
    buffer = io.BytesIO()
    with Image.open(IMAGES[0]) as scene:
        scene.convert("RGB").resize((1333, 800)).save(buffer, "JPEG")
    return buffer.getvalue()


def checked(wire: Client, shared: Client, picture: bytes, outputs: Sequence[str]) -> int:
    """Return the bytes of an answer, after both ways gave the same; the first is by wire for both.

    Raises:
        ValueError: they gave different bytes.
    """
    for _ in range(3):
        answers = [contents(client.predict(picture, outputs=outputs, **PARAMETERS)) for client in (wire, shared)]
        if answers[0] != answers[1]:
            raise ValueError("shared memory and the wire give different bytes")
    return sum(len(content) for content in answers[0].values())


def contents(result: Result) -> dict[str, bytes]:
    """Return the bytes of each output."""
    return {
        name: b"".join(map(bytes, array)) if array.dtype == object else array.tobytes()
        for name, array in result.outputs.items()
    }


def in_turns(clients: Sequence[Client], picture: bytes, outputs: Sequence[str], requests: int) -> list[float]:
    """Return the median milliseconds of a request of each client."""
    times: list[list[float]] = [[] for _ in clients]
    for _ in range(requests):
        for client, own in zip(clients, times, strict=True):
            started = time.perf_counter()
            client.predict(picture, outputs=outputs, **PARAMETERS)
            own.append((time.perf_counter() - started) * 1e3)
    return [statistics.median(own) for own in times]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return a line for each kind of output."""
    by_place: dict[tuple[str, str], Any] = {(row["outputs"], row["protocol"]): row for row in rows}
    protocols = dict.fromkeys(row["protocol"] for row in rows)
    names = {"wire_ms": ", ms", "shared_ms": ", shared, ms", "times_faster": ", times faster"}
    label = {"grpc": "gRPC", "http": "HTTP"}
    columns = ["outputs", "MB", *(label[protocol] + name for protocol in protocols for name in names.values())]
    lines = []
    for outputs in dict.fromkeys(row["outputs"] for row in rows):
        found = [by_place.get((outputs, protocol), {}) for protocol in protocols]
        size = next(row["bytes"] for row in found if row) / 1e6
        lines.append([outputs, size, *(row.get(name) for row in found for name in names)])
    return [Table("times", columns, lines)]
