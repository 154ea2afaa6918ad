"""KServe v2 over gRPC, by tritonclient."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from m2f_client.answer import readable
from m2f_client.client_errors import ModelNotFound, ServerUnavailable
from m2f_client.transports.address import Endpoint
from m2f_client.transports.failures import translated
from m2f_client.transports.of_process import OfProcess
from m2f_client.transports.protocol import Array, Deadline, Request, arrays, first_available, infer_arguments
from m2f_client.transports.proxies import Proxy, proxy_for
from m2f_client.transports.served_models import Hint
from m2f_client.transports.waiting import BLOCKING, Waiting

_MAX_BYTES = 2**31 - 1  # largest message of protobuf: enough for raw logits and dense masks
_NO_COMPRESSION = 1  # "identity" alone: a few kilobytes can unpack to gigabytes
_MAX_RECONNECT_MS = 5_000  # gRPC's default is two minutes: a restarted server would get no requests for so long

SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],  # every method: repeating an inference does no harm
            "retryPolicy": {
                "maxAttempts": 5,  # gRPC's limit
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],  # CANCELLED comes from a server that shuts down
            },
        }
    ],
}
"""Load balancing and retries, done by the channel; see gRPC's `service_config.proto` and gRFC A6."""


class GrpcTransport:
    """gRPC channels. Safe to share between threads. A timeout bounds a whole call, its retries included.

    With asyncio the channels belong to the event loop of the first call.
    """

    def __init__(self, endpoint: Endpoint, waiting: Waiting = BLOCKING) -> None:
        self.url = endpoint.url
        self._headers = {name: value for name, value in endpoint.headers.items() if name != "host"}
        self._waiting = waiting
        self._hint = Hint(self)
        self._channels = _channels(endpoint)
        self._clients = OfProcess(self._open)
        if not waiting.asynchronous:
            self._clients.get()

    def _open(self) -> list[tuple[Any, Proxy | None]]:
        flavour = triton_aio if self._waiting.asynchronous else triton
        return [(flavour.InferenceServerClient(**arguments), proxy) for arguments, proxy in self._channels]

    async def infer(self, request: Request) -> dict[str, Array]:
        """Run the model; see `Transport.infer`."""
        arguments = infer_arguments(triton, request)
        deadline = Deadline(request.timeout)
        try:
            answer = await self._call("infer", request.timeout, model_name=request.model, **arguments)
        except ModelNotFound as error:
            raise await self._hint.added_to(error, deadline.left()) from error.__cause__
        return arrays(answer, request)

    async def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:
        """Return the configuration of `model`; see `Connection.model_config`."""
        answer = await self._call("get_model_config", timeout, model_name=model, as_json=True)
        with readable():
            config: dict[str, Any] = answer["config"]
        return config

    async def register_memory(self, name: str, byte_size: int, timeout: float | None) -> None:
        """Let the server map memory; see `Connection.register_memory`."""
        arguments = {"name": name, "key": f"/{name}", "byte_size": byte_size}
        await self._call("register_system_shared_memory", timeout, **arguments)

    async def unregister_memory(self, name: str, timeout: float | None) -> None:
        """Let the server unmap memory; see `Connection.unregister_memory`."""
        await self._call("unregister_system_shared_memory", timeout, name=name)

    async def statistics(self, timeout: float | None) -> Sequence[Mapping[str, Any]]:
        """Return the server's statistics; see `Connection.statistics`."""
        answer = await self._call("get_inference_statistics", timeout, as_json=True)
        with readable():
            stats: Sequence[Mapping[str, Any]] = answer["model_stats"]
        return stats

    async def close(self) -> None:
        """Close the channels. They stay closed: a later call is an error of the caller."""
        for client, _ in self._clients.get():
            await self._waiting.call(client.close)

    async def _call(self, method: str, timeout: float | None, **arguments: Any) -> Any:
        """Return what a method of tritonclient's client returns, from the first server that is available."""
        deadline = Deadline(timeout)

        async def ask(server: tuple[Any, Proxy | None]) -> Any:
            client, proxy = server
            common = {"headers": dict(self._headers), "client_timeout": deadline.left()}  # tritonclient changes headers
            with translated((InferenceServerException,), self.url, timeout, proxy):
                return await self._waiting.call(getattr(client, method), **arguments, **common)

        return await first_available(self._clients.get(), ask)


def _channels(endpoint: Endpoint) -> list[tuple[dict[str, Any], Proxy | None]]:
    """Return the arguments of tritonclient's gRPC clients, and their proxies, in the order to ask them in.

    Several servers share one channel. It takes them in turn, passes over servers that do not answer, and retries. It
    cannot pass over a server that shuts down: for seconds Triton answers NOT_FOUND, and so quickly that this server
    gets most of the requests. So each server has a channel of its own, too, for requests that got this answer.

    gRPC asks a proxy for all servers of a channel at once, which no proxy understands. So servers behind a proxy have
    only their own channels.
    """
    channels = [_channel(endpoint, target, proxy_for(endpoint.scheme, target)) for target in endpoint.targets]
    if len(channels) == 1 or any(proxy for _, proxy in channels):
        return channels
    name = endpoint.targets[0]  # a server whose certificate is for another name is reached by its own channel only
    return [_channel(endpoint, _resolved(endpoint), None, [("grpc.default_authority", name)]), *channels]


def _channel(
    endpoint: Endpoint, target: str, proxy: Proxy | None, options: Sequence[tuple[str, Any]] = ()
) -> tuple[dict[str, Any], Proxy | None]:
    arguments: dict[str, Any] = {
        "url": target,
        "channel_args": [
            ("grpc.enable_http_proxy", int(proxy is not None)),
            *([("grpc.http_proxy", proxy.url)] if proxy is not None else []),
            ("grpc.max_send_message_length", _MAX_BYTES),
            ("grpc.max_receive_message_length", _MAX_BYTES),
            ("grpc.per_rpc_retry_buffer_size", _MAX_BYTES),  # by default a request above 256 KiB is not retried
            ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
            ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
            *options,
            # gRPC's name for HTTP's header `host`; as metadata, the header would contradict it. Later options win.
            *([("grpc.default_authority", endpoint.headers["host"])] if "host" in endpoint.headers else []),
        ],
    }
    if endpoint.tls is not None:
        files = {
            "root_certificates": endpoint.tls.ca,
            "certificate_chain": endpoint.tls.cert,
            "private_key": endpoint.tls.key,
        }
        arguments |= {"ssl": True} | {name: path and os.fspath(path) for name, path in files.items()}
    return arguments, proxy


def _resolved(endpoint: Endpoint) -> str:
    """Return several servers as one target. gRPC takes a list of numeric addresses, all IPv4 or all IPv6."""
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
    raise ServerUnavailable(f"no host name in {endpoint.url} can be resolved ({reason})")
