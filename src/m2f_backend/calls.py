"""Calls to a Triton server over HTTP, and what its metrics say of its queues."""

import http.client
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from m2f.errors import M2FError

TIMEOUT_S = 5.0
_COUNT = r'\{model="([^"]+)".*\} ([\d.e+]+)$'
_PENDING = re.compile(rf"^nv_inference_pending_request_count{_COUNT}", re.MULTILINE)
_LOST = re.compile(rf"^nv_inference_request_failure(?=.*BACKEND){_COUNT}", re.MULTILINE)


class CallError(M2FError):
    """A call to the running server did not work.

    Attributes:
        status: the HTTP status of its answer; None where there was no answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Queues:
    """The queues of a server.

    Attributes:
        pending: model to how many requests wait for it, those that it is at work on not counted.
        lost: model to how many requests have failed so far because its process was not there to answer them.
    """

    pending: Mapping[str, int]
    lost: Mapping[str, int]


def queues(metrics_url: str, *, timeout: float = TIMEOUT_S) -> Queues:
    """Return what the metrics say, all versions of a model together.

    Args:
        metrics_url: `host:port` of a server's metrics.
        timeout: seconds that each wait for the server may take.

    Raises:
        CallError: it does not answer in time.
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
    """Return the body of a 200 answer; `timeout` seconds bound each wait for the server.

    Raises:
        CallError: the server does not answer in time, or answers with an error.
    """
    connection = http.client.HTTPConnection(url, timeout=timeout)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise CallError(f"{method} {path}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise CallError(f"{method} {path}: {response.status} {_message(content)}", status=response.status)
    return content


def _message(content: bytes) -> str:
    """Return what an error answer says."""
    try:
        return str(json.loads(content)["error"])
    except (ValueError, LookupError, TypeError):
        return content.decode(errors="replace")[:200]
