"""Addresses of servers, with the headers and certificates for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import quote, urlsplit

from m2f_client.client_errors import InvalidAddress
from m2f_client.tls import Tls

DEFAULT_URL = "grpc://127.0.0.1:8001"
_DEFAULT_PORTS = {"grpc": 8001, "http": 8000, "grpcs": 443, "https": 443}
_SECURE = ("grpcs", "https")
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")  # allowed by gRPC and HTTP, in lower case
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A client's servers, with the headers and certificates for them.

    Attributes:
        url: the address as the user wrote it, for messages.
        scheme: grpc, grpcs, http or https.
        targets: `host:port` of each server.
        path: path before `/v2` over HTTP, without a slash at the end.
        headers: sent with every request; names in lower case.
        tls: certificates; None for a connection without TLS.
    """

    url: str
    scheme: str
    targets: tuple[str, ...]
    path: str
    headers: Mapping[str, str]
    tls: Tls | None

    @classmethod
    def parse(cls, url: str, headers: Mapping[str, str] | None = None, tls: Tls | None = None) -> Endpoint:
        """Return the endpoint of `scheme://host:port` or `scheme://host:port,host:port/base-path`.

        Args:
            url: address; a port defaults to Triton's own, 8001 for gRPC and 8000 for HTTP, and to 443 with TLS.
            headers: see `Client`.
            tls: see `Client`.

        Raises:
            InvalidAddress: the scheme, a host or a port is missing or wrong, or headers or certificates cannot be used.
        """
        scheme, _, rest = url.partition("://")
        hosts, slash, path = rest.partition("/")
        if scheme not in _DEFAULT_PORTS:
            raise InvalidAddress(f"{url!r} is not an address; use grpc://HOST:PORT or http://HOST:PORT")
        path = (slash + path).rstrip("/")
        if "//" in path or (path and scheme in ("grpc", "grpcs")):
            raise InvalidAddress(f"{url!r} is not an address; several servers: {scheme}://HOST:PORT,HOST:PORT")
        if tls is not None and scheme not in _SECURE:
            raise InvalidAddress(f"{url!r} is not an address with TLS; use {scheme}s://")
        secure = (tls or Tls()) if scheme in _SECURE else None
        if secure is not None:
            secure.context()  # checks the files: gRPC would not
        return cls(
            url=url,
            scheme=scheme,
            targets=tuple(_target(url, scheme, host) for host in hosts.split(",")),
            path=quote(path, safe="/%:@!$&'()*+,;=~"),
            headers=_checked_headers(headers or {}),
            tls=secure,
        )


def _target(url: str, scheme: str, host: str) -> str:
    try:
        parts = urlsplit(f"{scheme}://{host.strip()}")
        port = parts.port or _DEFAULT_PORTS[scheme]
        host_name = (parts.hostname or "").encode("idna").decode()
    except ValueError as error:
        raise InvalidAddress(f"{url!r} is not an address: {error}") from None
    if not parts.hostname or parts.query or parts.fragment:
        raise InvalidAddress(f"{url!r} is not an address; use grpc://HOST:PORT or http://HOST:PORT")
    if parts.username is not None:
        raise InvalidAddress("an address has no user and password here; send headers={'authorization': ...}")
    return f"[{host_name}]:{port}" if ":" in host_name else f"{host_name}:{port}"  # IPv6


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    checked = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name.lower()) or name.lower().endswith("-bin"):
            raise InvalidAddress(f"header {name!r} must be named with letters, digits and _ . - (and not end in -bin)")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise InvalidAddress(f"the value of header {name!r} must be text of printable ASCII")  # may be a secret
        checked[name.lower()] = value
    return checked


def is_loopback(target: str) -> bool:
    """Return whether `host:port` is on this machine."""
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
