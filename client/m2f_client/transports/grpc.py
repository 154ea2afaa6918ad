"""KServe v2 over gRPC, by tritonclient."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, TypeAlias

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from m2f_client.answer import readable
from m2f_client.client_errors import ModelNotFound
from m2f_client.transports.address import Endpoint, is_numeric
from m2f_client.transports.failures import translated
from m2f_client.transports.of_process import OfProcess
from m2f_client.transports.protocol import Array, Deadline, Request, arrays, first_available, infer_arguments
from m2f_client.transports.proxies import host_and_port
from m2f_client.transports.served_models import Hint
from m2f_client.transports.servers import Server, Servers
from m2f_client.transports.waiting import BLOCKING, Waiting

_MAX_BYTES = 2**31 - 1  # largest message of protobuf: enough for raw logits and dense masks
_NO_COMPRESSION = 1  # "identity" alone: a few kilobytes can unpack to gigabytes
_LOOK_UP_AGAIN_MS = 1_000  # least time between gRPC's own lookups of a name: its default is 30 s
_MAX_RECONNECT_MS = 1_000  # gRPC's default is two minutes: a restarted server would get no requests for so long

_Group: TypeAlias = tuple[Server, ...]  # that share a channel

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
        self._channels = OfProcess(lambda: _Channels(endpoint, triton_aio if waiting.asynchronous else triton))
        self._channels.get()  # checks the proxies

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
        for client in self._channels.get().closed():
            await self._waiting.call(client.close)

    async def _call(self, method: str, timeout: float | None, **arguments: Any) -> Any:
        """Return what a method of tritonclient's client returns, from the first server that is available."""
        deadline = Deadline(timeout)
        channels = self._channels.get()
        with translated((TimeoutError,), self.url, timeout):
            servers = await channels.servers.current(self._waiting, deadline)

        async def ask(group: _Group) -> Any:
            client, proxy = channels.client(group, servers), group[0].proxy
            common = {"headers": dict(self._headers), "client_timeout": deadline.left()}  # tritonclient changes headers
            with translated((InferenceServerException,), self.url, timeout, proxy):
                return await self._waiting.call(getattr(client, method), **arguments, **common)

        return await first_available(channels.in_turn(servers), ask)


class _Channels:
    """The channels of one process. Safe to share between threads.

    Several servers share one channel. It takes them in turn, passes over servers that do not answer, and retries. It
    cannot pass over a server that shuts down: for seconds Triton answers NOT_FOUND, and so quickly that this server
    gets most of the requests. So each server has a channel of its own, too, for requests that got this answer.

    gRPC asks a proxy for all servers of a channel at once, which no proxy understands. So servers behind a proxy have
    only their own channels.

    Args:
        endpoint: the servers.
        flavour: `tritonclient.grpc`, or its asyncio flavour.
    """

    def __init__(self, endpoint: Endpoint, flavour: Any) -> None:
        self.servers = Servers(endpoint)
        self._endpoint = endpoint
        self._flavour = flavour
        self._clients: dict[_Group, Any] = {}
        self._turn = count()
        self._closed = False

    def in_turn(self, servers: _Group) -> list[_Group]:
        """Return the groups of servers whose channels are to be asked, in this order."""
        first = next(self._turn) % len(servers)
        alone: list[_Group] = [(server,) for server in servers[first:] + servers[:first]]
        return alone if len(servers) == 1 or any(server.proxy for server in servers) else [servers, *alone]

    def client(self, group: _Group, servers: _Group) -> Any:
        """Return tritonclient's client of a channel.

        Args:
            group: the servers of the channel.
            servers: all servers. A channel with a server that is not among them, or that lacks a new one, is dropped:
                it closes at the end of its last call.
        """
        if self._closed:
            raise ValueError("the client is closed")
        if group not in self._clients:
            opened = {group: self._flavour.InferenceServerClient(**_channel(self._endpoint, group))}
            kept = {of: client for of, client in list(self._clients.items()) if _is_current(of, servers)}
            self._clients = opened | kept
        return self._clients[group]

    def closed(self) -> list[Any]:
        """Open no channel any more, and return the clients to close."""
        self._closed = True
        return list(self._clients.values())


def _is_current(group: _Group, servers: _Group) -> bool:
    return group == servers or (len(group) == 1 and group[0] in servers)


def _channel(endpoint: Endpoint, group: _Group) -> dict[str, Any]:
    """Return the arguments of tritonclient's gRPC client."""
    target, proxy = group[0].target, group[0].proxy
    address = group[0].address if len(group) == 1 else _shared_address(group)
    authority = endpoint.headers.get("host", target)
    arguments: dict[str, Any] = {
        "url": address,
        "channel_args": [
            ("grpc.enable_http_proxy", int(proxy is not None)),
            *([("grpc.http_proxy", proxy.url)] if proxy is not None else []),
            # gRPC's name for HTTP's header `host`; as metadata, the header would contradict it. Certificates are
            # for it: a server of a list that has another name than the first is reached by its own channel only
            *([("grpc.default_authority", authority)] if authority != address else []),
            ("grpc.max_send_message_length", _MAX_BYTES),
            ("grpc.max_receive_message_length", _MAX_BYTES),
            ("grpc.per_rpc_retry_buffer_size", _MAX_BYTES),  # by default a request above 256 KiB is not retried
            ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
            ("grpc.dns_min_time_between_resolutions_ms", _LOOK_UP_AGAIN_MS),
            ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
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


def _shared_address(group: _Group) -> str:
    """Return several servers as one: a list, which gRPC takes if it is all IPv4 or all IPv6; a name that is both."""
    found = [server.address for server in group if is_numeric(host_and_port(server.address)[0])]
    ipv4 = [address for address in found if not address.startswith("[")]
    is_one_name = len({server.target for server in group}) == 1
    if not found or (is_one_name and 0 < len(ipv4) < len(found)):
        return group[0].target
    return f"ipv4:{','.join(ipv4)}" if ipv4 else f"ipv6:{','.join(found)}"
