"""The proxy on the way to a host, as the environment names it: one rule for gRPC, HTTP and downloads.

This machine is never reached through a proxy. For another host the first variable that is set decides, and an empty
value means no proxy. Each name counts in lower case and, after that, in capitals.

    grpc, grpcs    grpc_proxy, https_proxy, http_proxy    as gRPC itself
    https          https_proxy, all_proxy                 as curl
    http           http_proxy, all_proxy

`no_proxy` (gRPC: `no_grpc_proxy`, then `no_proxy`) lists the hosts that need no proxy: `example.com` with all names
below it, `host:port`, addresses, networks such as `10.0.0.0/8`, and `*` for all.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import quote, unquote

from m2f_client.client_errors import InvalidAddress
from m2f_client.transports.address import is_this_machine

_GRPC = ("grpc_proxy", "https_proxy", "http_proxy")
_VARIABLES = {
    "grpc": _GRPC,
    "grpcs": _GRPC,
    "https": ("https_proxy", "all_proxy"),
    "http": ("http_proxy", "all_proxy"),
}
_VALUE = re.compile(
    r"(?:http://)?(?:(?P<user>[^@/]*)@)?(?P<host>\[[^\]\s]+\]|[^\s:@/?#]+)(?::(?P<port>\d{1,5}))?/?", re.IGNORECASE
)
_DEFAULT_PORT, _LAST_PORT = 80, 65535


@dataclass(frozen=True)
class Proxy:
    """A proxy that speaks HTTP.

    Attributes:
        variable: the environment variable that names it, for messages.
        host: the host that is reached through the proxy.
        address: `host:port` of the proxy.
        login: user and password; None without.
    """

    variable: str
    host: str
    address: str
    login: tuple[str, str] | None

    @property
    def note(self) -> str:
        """Text for the message of an error: which way was taken, and how to take the other."""
        return f"by the proxy in {self.variable}; no_proxy={self.host} goes without it"

    @property
    def url(self) -> str:
        """The proxy's address with its scheme, user and password."""
        login = ":".join(quote(text, safe="") for text in self.login or ())
        return f"http://{login and login + '@'}{self.address}"


def proxy_for(scheme: str, target: str) -> Proxy | None:
    """Return the proxy for requests to `host` or `host:port`; None if they go straight to the host.

    Raises:
        InvalidAddress: the variable's value is not the address of an HTTP proxy.
    """
    host, port = host_and_port(target)
    variable = next((name for name in map(_spelt, _VARIABLES[scheme]) if name is not None), None)
    value = os.environ[variable].strip() if variable is not None else ""
    if variable is None or not value or is_this_machine(host) or _is_excepted(scheme, host, port):
        return None
    found = _VALUE.fullmatch(value)
    if found is None or int(found["port"] or 0) > _LAST_PORT:
        raise InvalidAddress(
            f"the proxy in {variable} is not one that m2f can use; allowed is http://HOST:PORT; "
            f"no_proxy={host} goes without it"
        )
    user, _, password = (found["user"] or "").partition(":")
    login = (unquote(user), unquote(password)) if user else None
    return Proxy(variable, host, f"{found['host']}:{found['port'] or _DEFAULT_PORT}", login)


def _spelt(name: str) -> str | None:
    """Return a variable's name as it is set: in lower case or in capitals; None if it is not set.

    A CGI program has the header `Proxy` of a request in HTTP_PROXY, so that name does not count there.
    """
    names = (name,) if name == "http_proxy" and "REQUEST_METHOD" in os.environ else (name, name.upper())
    return next((spelt for spelt in names if spelt in os.environ), None)


def _is_excepted(scheme: str, host: str, port: str) -> bool:
    names = ("no_grpc_proxy", "no_proxy") if scheme in ("grpc", "grpcs") else ("no_proxy",)
    variable = next((name for name in map(_spelt, names) if name is not None), None)
    entries = os.environ[variable].split(",") if variable is not None else []
    return any(_covers(entry.strip().lower(), host.lower().rstrip("."), port) for entry in entries)


def _covers(entry: str, host: str, port: str) -> bool:
    """Return whether an entry of `no_proxy` means a host."""
    if entry == "*" or not entry:
        return bool(entry)
    try:
        return ip_address(host.partition("%")[0]) in ip_network(entry.strip("[]"), strict=False)
    except (TypeError, ValueError):  # TypeError: IPv4 in IPv6
        pass
    name, wanted_port = host_and_port(entry)
    name = name.removeprefix("*").strip(".")
    return wanted_port in ("", port) and (host == name or host.endswith(f".{name}"))


def host_and_port(target: str) -> tuple[str, str]:
    """Return host, without brackets, and port of `host`, `host:port` or `[host]:port`; the port may be empty."""
    found = re.fullmatch(r"\[?(.*?)\]?(?::(\d+))?", target) if target.count(":") == 1 or "]" in target else None
    return (found[1], found[2] or "") if found is not None else (target, "")
