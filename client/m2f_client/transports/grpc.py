"""KServe v2 over gRPC, by tritonclient."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from m2f_client.answer import readable
from m2f_client.client_errors import ServerUnavailable
from m2f_client.transports.address import Endpoint
from m2f_client.transports.failures import translated
from m2f_client.transports.protocol import (
    Array,
    Deadline,
    Request,
    T,
    arrays,
    first_available,
    first_available_async,
    infer_arguments,
)

_MAX_BYTES = 2**31 - 1  # of a message, protobuf's limit: enough for raw logits and dense masks
_NO_COMPRESSION = 1  # "identity" alone: a few kilobytes could be gigabytes when they are unpacked
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
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],  # the second from a server that ends just then
            },
        }
    ],
}
"""Load balancing and retries are the channel's own; see gRPC's `service_config.proto` and gRFC A6."""


class GrpcTransport:
    """gRPC channels. Safe to share between threads. A timeout bounds a whole call, its retries included."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self._headers = endpoint.headers
        self._clients = [triton.InferenceServerClient(**arguments) for arguments in _channels(endpoint)]

    def infer(self, request: Request) -> dict[str, Array]:
        """Run the model; see `Transport.infer`."""

        def call(client: Any, seconds: float | None) -> dict[str, Array]:
            arguments = infer_arguments(triton, request, self._headers)
            return arrays(client.infer(**arguments, client_timeout=seconds), request)

        return self._call(call, request.timeout)

    def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""

        def call(client: Any, seconds: float | None) -> dict[str, Any]:
            answer = client.get_model_config(model, as_json=True, headers=dict(self._headers), client_timeout=seconds)
            with readable():
                config: dict[str, Any] = answer["config"]
            return config

        return self._call(call, timeout)

    def register_memory(self, name: str, byte_size: int, timeout: float | None) -> None:
        """Let the server map memory; see `SharingTransport.register_memory`."""

        def call(client: Any, seconds: float | None) -> None:
            headers = dict(self._headers)
            client.register_system_shared_memory(name, f"/{name}", byte_size, headers=headers, client_timeout=seconds)

        self._call(call, timeout)

    def unregister_memory(self, name: str, timeout: float | None) -> None:
        """Let the server unmap memory; see `SharingTransport.unregister_memory`."""

        def call(client: Any, seconds: float | None) -> None:
            client.unregister_system_shared_memory(name, headers=dict(self._headers), client_timeout=seconds)

        self._call(call, timeout)

    def statistics(self, timeout: float | None) -> Sequence[Mapping[str, Any]]:
        """Return the server's statistics; see `Connection.statistics`."""

        def call(client: Any, seconds: float | None) -> Any:
            headers = dict(self._headers)
            return client.get_inference_statistics(headers=headers, client_timeout=seconds, as_json=True)

        stats: Sequence[Mapping[str, Any]] = self._call(call, timeout)["model_stats"]
        return stats

    def close(self) -> None:
        """Close the channels."""
        for client in self._clients:
            client.close()

    def _call(self, function: Callable[[Any, float | None], T], timeout: float | None) -> T:
        deadline = Deadline(timeout)

        def ask(client: Any) -> T:
            with _translated(self.url, timeout):
                return function(client, deadline.left())

        return first_available(self._clients, ask)


class AsyncGrpcTransport:
    """`GrpcTransport` for an event loop. The channels are made in the loop that uses them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self._headers = endpoint.headers
        self._channels = _channels(endpoint)
        self._clients: list[Any] = []

    async def infer(self, request: Request) -> dict[str, Array]:
        """Run the model; see `Transport.infer`."""

        async def call(client: Any, seconds: float | None) -> dict[str, Array]:
            arguments = infer_arguments(triton, request, self._headers)
            return arrays(await client.infer(**arguments, client_timeout=seconds), request)

        return await self._call(call, request.timeout)

    async def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`; see `Transport.model_config`."""

        async def call(client: Any, seconds: float | None) -> dict[str, Any]:
            headers = dict(self._headers)
            answer = await client.get_model_config(model, as_json=True, headers=headers, client_timeout=seconds)
            with readable():
                config: dict[str, Any] = answer["config"]
            return config

        return await self._call(call, timeout)

    async def register_memory(self, name: str, byte_size: int, timeout: float | None) -> None:
        """Let the server map memory; see `SharingTransport.register_memory`."""

        async def call(client: Any, seconds: float | None) -> None:
            headers = dict(self._headers)
            key = f"/{name}"
            await client.register_system_shared_memory(name, key, byte_size, headers=headers, client_timeout=seconds)

        await self._call(call, timeout)

    async def close(self) -> None:
        """Close the channels."""
        for client in self._clients:
            await client.close()

    async def _call(self, function: Callable[[Any, float | None], Awaitable[T]], timeout: float | None) -> T:
        if not self._clients:
            self._clients = [triton_aio.InferenceServerClient(**arguments) for arguments in self._channels]
        deadline = Deadline(timeout)

        async def ask(client: Any) -> T:
            with _translated(self.url, timeout):
                return await function(client, deadline.left())

        return await first_available_async(self._clients, ask)


def _translated(url: str, timeout: float | None) -> Any:
    return translated((InferenceServerException,), url, timeout)


def _channels(endpoint: Endpoint) -> list[dict[str, Any]]:
    """Return the arguments of tritonclient's gRPC clients, of both kinds, in the order to ask them in.

    Several servers share one channel, which takes them in turn, passes over those that do not answer and retries. A
    server that stops is the exception: Triton unloads its models and goes on to answer, for seconds, NOT_FOUND, at
    once, so that it gets most of the work. Whoever was told so asks the servers one by one: each has a channel, too.
    """
    if len(endpoint.targets) == 1:
        return [_channel(endpoint, endpoint.targets[0], [])]
    name = endpoint.targets[0]  # that is what the certificate of each must say, or requests go to them one by one
    shared = _channel(endpoint, _resolved(endpoint), [("grpc.default_authority", name)])
    return [shared, *(_channel(endpoint, target, []) for target in endpoint.targets)]


def _channel(endpoint: Endpoint, target: str, options: list[tuple[str, Any]]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "url": target,
        "channel_args": [
            ("grpc.max_send_message_length", _MAX_BYTES),
            ("grpc.max_receive_message_length", _MAX_BYTES),
            ("grpc.per_rpc_retry_buffer_size", _MAX_BYTES),  # 256 KiB by default: a larger request is not retried
            ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
            ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
            *options,
        ],
    }
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
