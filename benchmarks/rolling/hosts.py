"""A name that only some processes see: they have a hosts file of their own, in a private mount namespace."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

from ..frame import UnavailableError

NAME = "m2f.test"
_SIZE = 4096  # always: then one write replaces all lines, and a reader never sees half of them
_MOUNT = 'mount --bind "$0" /etc/hosts && exec "$@"'


class Hosts:
    """The hosts file in which `NAME` has the addresses of the replicas that are ready.

    Args:
        path: path of the file, which is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._addresses: tuple[str, ...] = ()
        self._path.write_bytes(self._content())
        check_namespaces(self)

    def set(self, addresses: Iterable[str]) -> None:
        """Give the name these addresses."""
        with self._lock:
            self._addresses = tuple(addresses)
            with self._path.open("r+b", buffering=0) as file:  # the mount is of this file, not of its name
                file.write(self._content())

    def seen_by(self, command: Iterable[str]) -> list[str]:
        """Return the command that runs `command` with this file as its /etc/hosts."""
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        return ["unshare", "--mount", *user, "--", "sh", "-c", _MOUNT, str(self._path), *command]

    def _content(self) -> bytes:
        lines = ["127.0.0.1 localhost", *(f"{address} {NAME}" for address in self._addresses)]
        return "\n".join(lines).encode().ljust(_SIZE, b"\n")


def check_namespaces(hosts: Hosts) -> None:
    """Check that this machine lets us have a mount namespace.

    Raises:
        UnavailableError: it does not.
    """
    try:
        subprocess.run(hosts.seen_by(["true"]), check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or error
        raise UnavailableError(f"no private mount namespace (unshare --mount): {why}".strip()) from error
