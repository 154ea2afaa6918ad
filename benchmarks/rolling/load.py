"""Keep requests in flight from a process of its own, and write what became of each.

    python -m benchmarks.rolling.load URL --client m2f --in-flight 16 --out FILE [--ca FILE]

It prints a line when it has learned the right answers, and sends requests from then until its standard input ends.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from m2f.contract import PUBLIC_MODEL
from m2f_client import Client, M2FError, Tls

Seen = list[Any]  # what tells one answer from another: size, RLE and scores
Ask = Callable[[bytes], Seen]

_TIMEOUT_S = 20.0
_PAUSE_S = 0.1  # after a failure, so that failures do not come by the thousand
_SIZES = [(96 + 8 * number, 128 + 8 * number) for number in range(8)]  # so that each answer belongs to one picture only


def pictures() -> list[bytes]:
    """Return pictures of different sizes."""
    blanks = [np.full((*size, 3), 90, np.uint8) for size in _SIZES]
    return [cv2.imencode(".png", blank)[1].tobytes() for blank in blanks]


@contextmanager
def m2f_client(url: str, ca: str | None) -> Iterator[Ask]:
    """Open the client of m2f, which knows several servers and asks another one again."""
    with Client(url, tls=Tls(ca=ca) if ca else None, timeout=_TIMEOUT_S) as client:

        def ask(image: bytes) -> Seen:
            result = client.predict(image)
            return _seen(result.size, result.rle, result.scores)

        yield ask


@contextmanager
def plain_client(url: str, ca: str | None) -> Iterator[Ask]:
    """Open tritonclient over gRPC as it is: gRPC looks the name up, and nothing is asked twice."""
    outputs = [triton.InferRequestedOutput(name) for name in ("size", "rle", "scores")]
    with triton.InferenceServerClient(url.partition("://")[2], ssl=bool(ca), root_certificates=ca) as client:

        def ask(image: bytes) -> Seen:
            tensor = triton.InferInput("image", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[image]], object))
            options = {"request_id": secrets.token_hex(8), "client_timeout": _TIMEOUT_S}
            answer = client.infer(PUBLIC_MODEL, [tensor], outputs=outputs, **options)
            return _seen(*(answer.as_numpy(name)[0] for name in ("size", "rle", "scores")))

        yield ask


M2F, PLAIN = "m2f", "tritonclient"
CLIENTS = {M2F: m2f_client, PLAIN: plain_client}


def _seen(size: Any, rle: Any, scores: Any) -> Seen:
    return [[int(side) for side in size], list(rle), np.asarray(scores).tolist()]


def main() -> None:
    """Send requests until standard input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("url")
    parser.add_argument("--client", choices=CLIENTS, default=M2F)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True, help="file for the outcomes, a JSON line each")
    parser.add_argument("--ca", help="certificate of the authority")
    arguments = parser.parse_args()
    with CLIENTS[arguments.client](arguments.url, arguments.ca) as ask:
        outcomes = _send_until_told(ask, arguments.in_flight)
    arguments.out.write_text("".join(json.dumps(outcome) + "\n" for outcome in outcomes))


def _send_until_told(ask: Ask, in_flight: int) -> list[dict[str, object]]:
    images = pictures()
    expected = [ask(image) for image in images]
    if any(size != list(picture) for (size, *_), picture in zip(expected, _SIZES, strict=True)):
        raise ValueError(f"answers belong to other pictures: {expected}")
    outcomes: list[dict[str, object]] = []
    stop = threading.Event()

    def work(first: int) -> None:
        number = first
        while not stop.is_set():
            which = number % len(images)
            began, kind, why = time.monotonic(), "right", ""
            try:
                if ask(images[which]) != expected[which]:
                    kind = "wrong"
            except (M2FError, InferenceServerException) as error:
                kind, why = "failed", f"{type(error).__name__}: {error}"
                stop.wait(_PAUSE_S)
            outcomes.append({"began": began, "ended": time.monotonic(), "kind": kind, "why": why})
            number += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(in_flight)]
    for thread in threads:
        thread.start()
    print("sending", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    return outcomes


if __name__ == "__main__":
    main()
