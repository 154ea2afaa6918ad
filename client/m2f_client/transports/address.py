"""Addresses of servers, with the headers and certificates for them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import quote

from m2f.errors import shown
from m2f_client.client_errors import InvalidAddress
from m2f_client.tls import Tls

DEFAULT_URL = "grpc://127.0.0.1:8001"
_DEFAULT_PORTS = {"grpc": 8001, "http": 8000, "grpcs": 443, "https": 443}
_SECURE = ("grpcs", "https")
_FORMS = "grpc://HOST:PORT, http://HOST:PORT, grpcs:// and https:// for TLS, or HOST:PORT for gRPC"
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")  # allowed by gRPC and HTTP, in lower case
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"(\[[0-9a-f:.]+(%[\w.~-]+)?\]|[^\s\[\]:@/?#%\\\x00-\x1f]+)(:([0-9]{1,5})?)?", re.IGNORECASE)
_SECRET = re.compile(r"^([^/]*//)?.*@", re.DOTALL)
_PORTS = range(1, 65536)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A client's servers, with the headers and certificates for them.

    Attributes:
        url: the address with its scheme, for messages.
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
            url: address. Without a scheme the protocol is gRPC. A port defaults to Triton's own, 8001 for gRPC and 8000
                for HTTP, and to 443 with TLS. The line that `m2f serve --json` prints stands for its gRPC address.
            headers: see `Client`.
            tls: see `Client`.

        Raises:
            InvalidAddress: the scheme, a host or a port is missing or wrong, or headers or certificates cannot be used.
        """
        scheme, rest = _split(url)
        hosts, slash, path = rest.partition("/")
        path = (slash + path).rstrip("/")
        if "://" in rest or "//" in path:
            raise _wrong(url, f"several servers are {scheme}://HOST:PORT,HOST:PORT")
        if "?" in rest or "#" in rest:
            raise _wrong(url, "it has a query or a fragment (? or #)")
        if path and scheme in ("grpc", "grpcs"):
            raise _wrong(url, f"gRPC has no path; use {_FORMS}")
        targets = tuple(_target(url, scheme, host.strip()) for host in hosts.split(","))
        url = f"{scheme}://{rest}"
        if tls is not None and scheme not in _SECURE:
            raise InvalidAddress(f"{url!r} is not an address with TLS; use {scheme}s://")
        secure = (tls or Tls()) if scheme in _SECURE else None
        if secure is not None:
            secure.context()  # checks the files: gRPC would not
        return cls(
            url=url,
            scheme=scheme,
            targets=targets,
            path=quote(path, safe="/%:@!$&'()*+,;=~"),
            headers=_checked_headers(headers or {}),
            tls=secure,
        )


def is_address(text: str) -> bool:
    """Return whether text is an address rather than the name of a file: it has a scheme or a port, or is JSON."""
    first = _HOST.fullmatch(text.partition(",")[0])
    return text.lstrip().startswith("{") or _SCHEME.match(text) is not None or (first is not None and bool(first[4]))


def announced(line: str, protocol: str) -> str:
    """Return the address of a protocol in the line that `m2f serve --json` prints.

    Args:
        line: the line, a JSON object.
        protocol: grpc or http.

    Raises:
        InvalidAddress: the line is not such a line.
    """
    try:
        ready = json.loads(line)
        target, tls = ready[protocol], ready["tls"] and protocol == "grpc"
    except (LookupError, RecursionError, TypeError, ValueError):
        target = tls = None
    if not isinstance(target, str):
        raise InvalidAddress(f"{shown(line)} is not the line that m2f serve --json prints")
    return f"{protocol}{'s' if tls else ''}://{target}"


def _split(url: str) -> tuple[str, str]:
    """Return an address's scheme, and the rest of the address."""
    if not isinstance(url, str):
        raise InvalidAddress(f"an address is text; got {type(url).__name__}")
    text = url.strip()
    if text.startswith("{"):
        text = announced(text, "grpc")
    found = _SCHEME.fullmatch(text)
    if found is None:
        if _is_file(text):
            raise _wrong(url, f"it is a file; use {_FORMS}")
        return "grpc", text
    scheme = found[1].lower()
    if scheme not in _DEFAULT_PORTS:
        raise _wrong(url, f"{scheme}:// is not a scheme of a server; use {_FORMS}")
    return scheme, found[2]


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long, or not a name
        return False


def _target(url: str, scheme: str, host: str) -> str:
    found = _HOST.fullmatch(host)
    if "@" in host:
        raise _wrong(url, "it has a user or a password; send headers={'authorization': ...}")
    if found is None and _is_ipv6(host):
        raise _wrong(url, f"an IPv6 address stands in brackets: {scheme}://[::1]:{_DEFAULT_PORTS[scheme]}")
    if found is None or (found[4] and int(found[4]) not in _PORTS):
        raise _wrong(url, f"use {_FORMS}; PORT is 1 to 65535")
    try:
        name = found[1].encode("idna").decode().lower()
    except UnicodeError:
        raise _wrong(url, "a part of the host's name is empty or too long") from None
    return f"{name}:{found[4] or _DEFAULT_PORTS[scheme]}"


def _is_ipv6(host: str) -> bool:
    return is_numeric(host) and ip_address(host).version == 6


def is_numeric(host: str) -> bool:
    """Return whether a host, without brackets, is an IP address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _wrong(url: str, reason: str) -> InvalidAddress:
    """Return the error of an address, without the password that may be in the address."""
    return InvalidAddress(f"{shown(_SECRET.sub(_without_secret, url))} is not an address: {reason}")


def _without_secret(found: re.Match[str]) -> str:
    return f"{found[1] or ''}...@"


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    checked = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name.lower()) or name.lower().endswith("-bin"):
            raise InvalidAddress(f"header {name!r} must be named with letters, digits and _ . - (and not end in -bin)")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise InvalidAddress(f"the value of header {name!r} must be text of printable ASCII")  # may be a secret
        checked[name.lower()] = value
    return checked


def is_this_machine(host: str) -> bool:
    """Return whether a host name or address is this machine's own: loopback, or the address of a server on all."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified
