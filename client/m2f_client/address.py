"""From an address to a connection. tritonclient is imported here, and only the flavour that is needed: it is slow."""

from __future__ import annotations

from urllib.parse import urlsplit

from m2f_client.errors import InvalidAddress
from m2f_client.transport import Transport

DEFAULT_URL = "grpc://127.0.0.1:8001"
_DEFAULT_PORTS = {"grpc": 8001, "http": 8000}


def open_transport(url: str, timeout: float | None) -> Transport:
    """Return the transport that `url` names: `grpc://host:port` or `http://host:port/base-path`.

    Args:
        url: address; the port defaults to Triton's own, 8001 for gRPC and 8000 for HTTP.
        timeout: seconds; None waits for ever.

    Raises:
        InvalidAddress: no scheme, another scheme, no host or a bad port.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise InvalidAddress(f"{url!r} is not an address: {error}") from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise InvalidAddress(f"{url!r} is not an address; use grpc://HOST:PORT or http://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname  # IPv6
    if parts.scheme == "grpc":
        from m2f_client.transport_grpc import GrpcTransport  # noqa: PLC0415

        return GrpcTransport(f"{host}:{port}", url=url, timeout=timeout)
    from m2f_client.transport_http import HttpTransport  # noqa: PLC0415

    return HttpTransport(f"{host}:{port}{parts.path}", url=url, timeout=timeout)
