"""Keep requests in flight from a process of its own, and write what became of each.

    python -m benchmarks.rolling.load URL --in-flight 16 --out FILE [--ca FILE]

It prints a line when it has learned the right answers, and sends requests from then until its standard input ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np

from m2f_client import Client, M2FError, Result, Tls

_TIMEOUT_S = 20.0
_PAUSE_S = 0.1  # after a failure, so that failures do not come by the thousand
_SIZES = [(96 + 8 * number, 128 + 8 * number) for number in range(8)]  # so that each answer belongs to one picture only


def pictures() -> list[bytes]:
    """Return pictures of different sizes."""
    blanks = [np.full((*size, 3), 90, np.uint8) for size in _SIZES]
    return [cv2.imencode(".png", blank)[1].tobytes() for blank in blanks]


def main() -> None:
    """Send requests until standard input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("url")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True, help="file for the outcomes, a JSON line each")
    parser.add_argument("--ca", help="certificate of the authority")
    arguments = parser.parse_args()
    tls = Tls(ca=arguments.ca) if arguments.ca else None
    with Client(arguments.url, tls=tls, timeout=_TIMEOUT_S) as client:
        outcomes = _send_until_told(client, arguments.in_flight)
    arguments.out.write_text("".join(json.dumps(outcome) + "\n" for outcome in outcomes))


def _send_until_told(client: Client, in_flight: int) -> list[dict[str, object]]:
    images = pictures()
    expected = [_seen(client.predict(image)) for image in images]
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
                if _seen(client.predict(images[which])) != expected[which]:
                    kind = "wrong"
            except M2FError as error:
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


def _seen(result: Result) -> list[object]:
    """Return what tells one answer from another."""
    return [[int(side) for side in result.size], list(result.rle), np.asarray(result.scores).tolist()]


if __name__ == "__main__":
    main()
