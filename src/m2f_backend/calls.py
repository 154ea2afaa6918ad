"""Call a Triton server over HTTP, and read the length of its queues from its metrics."""

import errno
import http.client
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from m2f.errors import M2FError

TIMEOUT_S = 5.0
SHORTAGES = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EAGAIN,  # no room for a process or a thread
        errno.EADDRNOTAVAIL,  # every local port is in use
    }
)
_COUNT = r'\{model="([^"]+)".*\} ([\d.e+]+)$'
_PENDING = re.compile(rf"^nv_inference_pending_request_count{_COUNT}", re.MULTILINE)
_LOST = re.compile(rf"^nv_inference_request_failure(?=.*BACKEND){_COUNT}", re.MULTILINE)


class CallError(M2FError):
    """A call to the running server failed.

    Attributes:
        status: HTTP status of the answer; None if there was no answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class CannotCallError(CallError):
    """This machine lacks a file descriptor, memory or a port for a call, which says nothing about the server."""


@dataclass(frozen=True)
class Queues:
    """The queues of a server.

    Attributes:
        pending: number of waiting requests by model, without those that the model works on.
        lost: number of requests by model that failed so far because the model's process was dead.
    """

    pending: Mapping[str, int]
    lost: Mapping[str, int]


def queues(metrics_url: str, *, timeout: float = TIMEOUT_S) -> Queues:
    """Return the queues of a server, summed over the versions of each model.

    Args:
        metrics_url: `host:port` of the server's metrics.
        timeout: largest number of seconds for each wait for the server.

    Raises:
        CallError: the server does not answer in time.
    """
    metrics = fetch(metrics_url, "GET", "/metrics", timeout=timeout).decode("latin-1")
    return Queues(pending=_sums(_PENDING, metrics), lost=_sums(_LOST, metrics))


def _sums(metric: re.Pattern[str], metrics: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for model, count in metric.findall(metrics):
        sums[model] = sums.get(model, 0) + int(float(count))
    return sums


def fetch(
    url: str,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_S,
) -> bytes:
    """Return the body of an answer with status 200.

    Args:
        url: `host:port` of the server.
        method: HTTP method.
        path: path of the request.
        body: body of the request.
        headers: headers of the request.
        timeout: largest number of seconds for each wait for the server.

    Raises:
        CallError: the server does not answer in time, or answers with an error.
        CannotCallError: this machine lacks something for the call.
    """
    connection = http.client.HTTPConnection(url, timeout=timeout)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        kind = CannotCallError if isinstance(error, OSError) and error.errno in SHORTAGES else CallError
        raise kind(f"{method} {path}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise CallError(f"{method} {path}: {response.status} {_message(content)}", status=response.status)
    return content


def _message(content: bytes) -> str:
    """Return the message of an error answer: its JSON field `error`, else its first 200 bytes."""
    try:
        return str(json.loads(content)["error"])
    except (ValueError, LookupError, TypeError):
        return content.decode(errors="replace")[:200]
