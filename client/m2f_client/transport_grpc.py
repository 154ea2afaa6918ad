"""KServe v2 over gRPC, by tritonclient."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from m2f_client.address import Endpoint
from m2f_client.errors import ServerUnavailable
from m2f_client.failures import translated
from m2f_client.transport import Array, Request, arrays, infer_arguments

_MAX_BYTES = 2**31 - 1  # of a message, protobuf's limit: enough for raw logits and dense masks
_MAX_RECONNECT_MS = 5_000  # gRPC's own is two minutes: a server that is back would be left alone for so long

SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],  # every method; an inference may be repeated
            "retryPolicy": {
                "maxAttempts": 5,  # gRPC's own limit
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
"""Load balancing and retries are the channel's own; see gRPC's `service_config.proto` and gRFC A6."""


class GrpcTransport:
    """A gRPC channel. Safe to share between threads. A timeout bounds a whole call, its retries included."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self._headers = endpoint.headers
        self._client = triton.InferenceServerClient(**_client_arguments(endpoint))

    def infer(self, request: Request) -> dict[str, Array]:
        """Run the model; see `Transport.infer`."""
        with _translated(self.url, request.timeout):
            arguments = infer_arguments(triton, request, self._headers)
            return arrays(self._client.infer(**arguments, client_timeout=request.timeout), request)

    def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""
        with _translated(self.url, timeout):
            answer = self._client.get_model_config(
                model, as_json=True, headers=dict(self._headers), client_timeout=timeout
            )
        config: dict[str, Any] = answer["config"]
        return config

    def close(self) -> None:
        """Close the channel."""
        self._client.close()


class AsyncGrpcTransport:
    """`GrpcTransport` for an event loop. The channel is made in the loop that uses it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self._headers = endpoint.headers
        self._arguments = _client_arguments(endpoint)
        self._opened: Any = None

    @property
    def _client(self) -> Any:
        if self._opened is None:
            self._opened = triton_aio.InferenceServerClient(**self._arguments)
        return self._opened

    async def infer(self, request: Request) -> dict[str, Array]:
        """Run the model; see `Transport.infer`."""
        with _translated(self.url, request.timeout):
            arguments = infer_arguments(triton, request, self._headers)
            return arrays(await self._client.infer(**arguments, client_timeout=request.timeout), request)

    async def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""
        with _translated(self.url, timeout):
            answer = await self._client.get_model_config(
                model, as_json=True, headers=dict(self._headers), client_timeout=timeout
            )
        config: dict[str, Any] = answer["config"]
        return config

    async def close(self) -> None:
        """Close the channel."""
        if self._opened is not None:
            await self._opened.close()


def _translated(url: str, timeout: float | None) -> Any:
    return translated((InferenceServerException,), url, timeout)


def _client_arguments(endpoint: Endpoint) -> dict[str, Any]:
    """Return the arguments of tritonclient's gRPC clients, of both kinds."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", _MAX_BYTES),
        ("grpc.max_receive_message_length", _MAX_BYTES),
        ("grpc.per_rpc_retry_buffer_size", _MAX_BYTES),  # a larger request is not retried; 256 KiB is less than a photo
        ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ]
    target = endpoint.targets[0]
    if len(endpoint.targets) > 1:
        options.append(("grpc.default_authority", target))  # the name that each server's certificate must have
        target = _resolved(endpoint)
    arguments: dict[str, Any] = {"url": target, "channel_args": options}
    if endpoint.tls is not None:
        files = {
            "root_certificates": endpoint.tls.ca,
            "certificate_chain": endpoint.tls.cert,
            "private_key": endpoint.tls.key,
        }
        arguments |= {"ssl": True} | {name: path and os.fspath(path) for name, path in files.items()}
    return arguments


def _resolved(endpoint: Endpoint) -> str:
    """Return several servers as one target: gRPC takes a list of numeric addresses of one family, IPv4 or IPv6."""
    reason = ""
    for scheme, family in (("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)):
        found: list[str] = []
        for target in endpoint.targets:
            host, _, port = target.rpartition(":")
            try:
                infos = socket.getaddrinfo(host.strip("[]"), int(port), family, socket.SOCK_STREAM)
            except OSError as error:
                reason = str(error.strerror)
                continue
            found += [f"[{info[4][0]}]:{port}" if scheme == "ipv6" else f"{info[4][0]}:{port}" for info in infos]
        if found:
            return f"{scheme}:{','.join(dict.fromkeys(found))}"
    raise ServerUnavailable(f"none of the servers in {endpoint.url} is known ({reason})")
