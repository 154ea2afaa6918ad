"""Release a client's shared memory, however the client ends.

The guard is a process in a session of its own, so a signal to the client's process group does not reach the guard. It
reads the names of regions from its standard input, which the kernel closes when the client dies. A region is released
in this order: first the file's name, so that a registration still under way finds no file; then the server's mapping.
While a request uses the region, Triton up to 2.51 refuses to unmap it, so the guard asks again. Triton from 2.52 on
waits.
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
from m2f_client.transports.address import Endpoint
from m2f_client.transports.connect import connect
from m2f_client.transports.protocol import Connection
from m2f_client.transports.waiting import run_blocking

FOLDER = Path("/dev/shm")
PREFIX = "m2f-client-"
"""Start of the names of clients' regions. The server's own regions have other names."""

_CLOSE_S = 5.0  # longest wait of `close`; the process goes on without the client if a request still uses a region
_IN_USE_S = 600.0  # longest time that a request may use a region after its client has ended
_CALL_S = 10.0


class RegionGuard:
    """The client's handle of the process. Safe to share between threads.

    Args:
        endpoint: the server, with its headers and certificates.
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
        """Have a region released when the client ends. Call this before the region is made.

        Raises:
            NoSharedMemory: the guard process has ended.
        """
        try:
            self._tell(f"keep {name}")
        except BrokenPipeError as error:
            raise NoSharedMemory("the process that releases shared memory has ended; open another client") from error

    def drop(self, name: str) -> None:
        """Release a region as soon as no request uses it."""
        with suppress(BrokenPipeError):
            self._tell(f"drop {name}")

    def close(self) -> None:
        """Release all regions. Waits for that at most 5 s."""
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


def release(connection: Connection, name: str) -> None:
    """Remove a region's file and the server's mapping of it. A server that has ended has no mapping."""
    (FOLDER / name).unlink(missing_ok=True)
    end, pause = time.monotonic() + _IN_USE_S, 0.02
    while time.monotonic() < end:
        try:
            run_blocking(connection.unregister_memory(name, _CALL_S))
        except (NoSharedMemory, Timeout):  # a request uses it
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
        except M2FError:
            return
        else:
            return


def main() -> None:
    """Release the regions that the client drops, and all others when the client ends."""
    connection = connect(_from_json(sys.stdin.readline()))
    kept: set[str] = set()
    with ThreadPoolExecutor(thread_name_prefix="release") as pool:
        for line in sys.stdin:
            word, name = line.split()
            if word == "keep":
                kept.add(name)
            else:
                kept.discard(name)
                pool.submit(release, connection, name)
        for name in kept:
            pool.submit(release, connection, name)
    run_blocking(connection.close())


if __name__ == "__main__":
    main()
