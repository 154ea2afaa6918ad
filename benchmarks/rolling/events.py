"""What happens to replicas while requests are in flight."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .replicas import Replica, Replicas


@dataclass(frozen=True)
class New:
    """A replica that was started under load.

    Attributes:
        replica: the replica.
        ready_at: when its `/ready` said 200, by `time.monotonic`.
    """

    replica: Replica
    ready_at: float


def _started(replica: Replica) -> New:
    replica.start()
    return New(replica, replica.wait_ready())


def sigterm(replicas: Replicas) -> list[New]:
    """Stop one replica as Kubernetes does, and wait until it has ended."""
    replicas.all[0].terminate()
    return []


def sigkill_server(replicas: Replicas) -> list[New]:
    """Kill tritonserver of one replica, and wait until `m2f serve` has another one that serves."""
    replica = replicas.all[0]
    replica.kill_server()
    while replica.is_ready():  # until `m2f serve` has seen it
        time.sleep(0.02)
    return [New(replica, replica.wait_ready())]


def sigkill_everything(replicas: Replicas) -> list[New]:
    """Kill all processes of one replica at once."""
    replicas.all[0].kill_everything()
    return []


def scale_up(replicas: Replicas) -> list[New]:
    """Start a replica that did not run before the load."""
    return [_started(replicas.all[-1])]


def update(replicas: Replicas) -> list[New]:
    """Stop each replica in turn and start another one in its place."""
    found = []
    for replica in replicas.all:
        replica.terminate()
        found.append(_started(replica))
    return found


SCALE_UP, UPDATE = "scale-up", "rolling update"
EVENTS: Mapping[str, Callable[[Replicas], list[New]]] = {
    "SIGTERM": sigterm,
    "SIGKILL of the server": sigkill_server,
    "SIGKILL of everything": sigkill_everything,
    SCALE_UP: scale_up,
    UPDATE: update,
}
