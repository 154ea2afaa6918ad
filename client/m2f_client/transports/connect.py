"""From an endpoint to a connection. tritonclient is imported here, and only the flavour that is needed: it is slow."""

from __future__ import annotations

from m2f_client.transports.address import Endpoint
from m2f_client.transports.protocol import Connection
from m2f_client.transports.waiting import BLOCKING, Waiting


def connect(endpoint: Endpoint, waiting: Waiting = BLOCKING) -> Connection:
    """Return a connection over the endpoint's protocol. Nothing is sent before the first call."""
    if endpoint.scheme in ("grpc", "grpcs"):
        from m2f_client.transports.grpc import GrpcTransport  # noqa: PLC0415

        return GrpcTransport(endpoint, waiting)
    from m2f_client.transports.http import HttpTransport  # noqa: PLC0415

    return HttpTransport(endpoint, waiting)
