"""The ways from a client to several replicas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from . import envoy
from .hosts import NAME
from .replicas import Replicas

LIST, BY_NAME, NGINX, ENVOY = "list of addresses", "one name", "one name, nginx in each pod", "Envoy"
PATHS = (LIST, BY_NAME, NGINX, ENVOY)
PROTOCOLS = ("grpc", "http")
_ENVOY_PORT, _ADMIN_PORT = 8443, 9901  # of an address that nobody else uses


@dataclass(frozen=True)
class Way:
    """What a client is told.

    Attributes:
        url: the address.
        tls: whether the address has TLS.
    """

    url: str
    tls: bool


@contextmanager
def opened(path: str, protocol: str, replicas: Replicas) -> Iterator[Way]:
    """Open a way to replicas for the length of the `with` block.

    Args:
        path: one of `PATHS`.
        protocol: one of `PROTOCOLS`.
        replicas: the replicas, which run.
    """
    port = replicas.ports[protocol]
    if path == LIST:
        yield Way(f"{protocol}://{','.join(f'{replica.address}:{port}' for replica in replicas.all)}", tls=False)
    elif path == BY_NAME:
        yield Way(f"{protocol}://{NAME}:{port}", tls=False)
    elif path == NGINX:
        yield Way(f"{protocol}s://{NAME}:{replicas.ports['front']}", tls=True)
    else:
        with _envoy(replicas):
            yield Way(f"{protocol}s://{replicas.balancer}:{_ENVOY_PORT}", tls=True)


@contextmanager
def _envoy(replicas: Replicas) -> Iterator[None]:
    configuration = replicas.folder / "envoy.yaml"
    listen, admin = (replicas.balancer, _ENVOY_PORT), (replicas.balancer, _ADMIN_PORT)
    envoy.configure(
        configuration, addresses=[NAME], ports=replicas.ports, listen=listen, admin=admin, tls=replicas.folder
    )
    command = replicas.hosts.seen_by(envoy.command(configuration))
    with envoy.running(command, f"{replicas.balancer}:{_ADMIN_PORT}", replicas.folder / "envoy.log"):
        yield
