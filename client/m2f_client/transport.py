"""How requests travel: one small protocol, and tritonclient's HTTP and gRPC clients behind it.

A test gives `Client` an object of its own with the same four members. tritonclient is imported when an
address is opened, and only the flavour it needs: both are slow to import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy.typing as npt

from m2f_client.errors import InvalidAddress

Array = npt.NDArray[Any]
Parameter = str | int | float | bool

DEFAULT_URL = "grpc://127.0.0.1:8001"
_DEFAULT_PORTS = {"grpc": 8001, "http": 8000}


class Transport(Protocol):
    """What `Client` needs from a connection. Every call raises only `M2FError`s."""

    url: str

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> dict[str, Array]:
        """Run `model` and return the named outputs, batch dimension first.

        Args:
            model: name of the model.
            inputs: arrays by input name; BYTES tensors are object arrays of `bytes`.
            outputs: the outputs wanted.
            parameters: request parameters, sent as they are.
        """

    def model_config(self, model: str) -> dict[str, Any]:
        """Return the configuration of `model` as Triton's JSON has it."""

    def close(self) -> None:
        """Close the connection."""


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
