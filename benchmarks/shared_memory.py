"""What shared memory saves: `Client(url, shared_memory=True)` against the wire, by outputs and protocol.

    python -m benchmarks.shared_memory [--requests 40]

One picture of 1333 x 800 with 20 instances, one request at a time. The two ways take turns, and must give the same
bytes before they are timed.
"""

import argparse
import io
import statistics
import time
from collections.abc import Sequence

from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.perf_analyzer import ROOT
from m2f.contract import RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f_client import Client, Result
from m2f_server import serve

OUTPUTS: dict[str, Sequence[str]] = {
    "structured": STRUCTURED_OUTPUTS,
    "raw logits": RAW_OUTPUTS,
    "packed masks": ("num_instances", "packed_masks"),
    "panoptic": ("panoptic", "segments"),
    "dense masks": ("num_instances", "masks"),
}
PARAMETERS = {"score_threshold": 0.0, "keep_top_k": 20}


def main() -> None:
    """Measure and print a row for each kind of output and protocol."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=40)
    requests = parser.parse_args().requests
    table = Table("outputs", "MB", "protocol", "wire, ms", "shared memory, ms", "ratio", box=None)
    picture = large_picture()
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with serve(model_repository=ROOT / "model_repository", config_name="cpu", **ports) as server:
        for protocol, address in (("grpc", server.grpc_url), ("http", server.http_url)):
            url, headers = f"{protocol}://{address}", server.access.headers
            with Client(url) as wire, Client(url, headers=headers, shared_memory=True) as shared:
                for name, outputs in OUTPUTS.items():
                    megabytes = checked(wire, shared, picture, outputs) / 1e6
                    times = in_turns([wire, shared], picture, outputs, requests)
                    ratio = f"{times[0] / times[1]:.2f}"
                    table.add_row(name, f"{megabytes:.2f}", protocol, *(f"{t * 1000:.1f}" for t in times), ratio)
    Console().print(table)


def large_picture() -> bytes:
    """Return an example scene as a JPEG of 1333 x 800."""
    buffer = io.BytesIO()
    with Image.open(sorted((ROOT / "examples/images").glob("scene_1*"))[0]) as scene:
        scene.convert("RGB").resize((1333, 800)).save(buffer, "JPEG")
    return buffer.getvalue()


def checked(wire: Client, shared: Client, picture: bytes, outputs: Sequence[str]) -> int:
    """Return the bytes of an answer, after both ways gave the same; the first is by wire for both."""
    for _ in range(3):
        answers = [contents(client.predict(picture, outputs=outputs, **PARAMETERS)) for client in (wire, shared)]
        assert answers[0] == answers[1]
    return sum(len(content) for content in answers[0].values())


def contents(result: Result) -> dict[str, bytes]:
    """Return the bytes of each output."""
    return {
        name: b"".join(map(bytes, array)) if array.dtype == object else array.tobytes()
        for name, array in result.outputs.items()
    }


def in_turns(clients: Sequence[Client], picture: bytes, outputs: Sequence[str], requests: int) -> list[float]:
    """Return the median seconds of a request of each client."""
    times: list[list[float]] = [[] for _ in clients]
    for _ in range(requests):
        for client, own in zip(clients, times, strict=True):
            started = time.perf_counter()
            client.predict(picture, outputs=outputs, **PARAMETERS)
            own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in times]


if __name__ == "__main__":
    main()
