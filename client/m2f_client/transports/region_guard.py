"""Let go of a client's shared memory, however the client ends.

A process of its own, in a session of its own, so that what kills the client does not reach it. It reads the names of
regions from its standard input, which the kernel closes when the client dies of whatever cause. A region is let go in
one order: its name first, so that a registration still under way finds nothing; then the server's hold on it, asked for
again while a request uses it (Triton refuses up to 2.51, and waits from 2.52 on).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

from m2f.errors import M2FError
from m2f_client.client_errors import NoSharedMemory, Timeout
from m2f_client.tls import Tls
from m2f_client.transports.address import Endpoint, connect
from m2f_client.transports.protocol import SharingTransport

FOLDER = Path("/dev/shm")
PREFIX = "m2f-client-"
"""What the names of a client's regions start with; the server's own start with another word."""

_CLOSE_S = 5.0  # that `close` waits; the process goes on by itself if a request still uses a region
_IN_USE_S = 600.0  # that a request may use a region after its client has gone
_CALL_S = 10.0


class RegionGuard:
    """The client's end. Safe to share between threads.

    Args:
        endpoint: the server, and what to send along.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._lock = Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        with suppress(BrokenPipeError):
            self._tell(_as_json(endpoint))

    def keep(self, name: str) -> None:
        """Look after a region; to be told before it is made.

        Raises:
            NoSharedMemory: the process has ended.
        """
        try:
            self._tell(f"keep {name}")
        except BrokenPipeError as error:
            raise NoSharedMemory("the process that lets go of shared memory has ended; open another client") from error

    def drop(self, name: str) -> None:
        """Let go of a region as soon as the server does not use it any more."""
        with suppress(BrokenPipeError):
            self._tell(f"drop {name}")

    def close(self) -> None:
        """Let go of all regions; wait for that, but not long."""
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=_CLOSE_S)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def _as_json(endpoint: Endpoint) -> str:
    tls = endpoint.tls and {name: path and os.fspath(path) for name, path in vars(endpoint.tls).items()}
    return json.dumps({"url": endpoint.url, "headers": dict(endpoint.headers), "tls": tls})


def _from_json(text: str) -> Endpoint:
    values = json.loads(text)
    return Endpoint.parse(values["url"], values["headers"], values["tls"] and Tls(**values["tls"]))


def release(transport: SharingTransport, name: str) -> None:
    """Remove a region's name and let the server let go of it; where the server has gone, so has its hold."""
    (FOLDER / name).unlink(missing_ok=True)
    end, pause = time.monotonic() + _IN_USE_S, 0.02
    while time.monotonic() < end:
        try:
            transport.unregister_memory(name, _CALL_S)
        except (NoSharedMemory, Timeout):  # in use
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
        except M2FError:
            return
        else:
            return


def main() -> None:
    """Let go of regions as the client says, and of all that are left when it ends."""
    transport = connect(_from_json(sys.stdin.readline()))
    kept: set[str] = set()
    with ThreadPoolExecutor(thread_name_prefix="release") as pool:
        for line in sys.stdin:
            word, name = line.split()
            if word == "keep":
                kept.add(name)
            else:
                kept.discard(name)
                pool.submit(release, transport, name)
        for name in kept:
            pool.submit(release, transport, name)
    transport.close()


if __name__ == "__main__":
    main()
