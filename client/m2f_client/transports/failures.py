"""The client's exception for what a transport raises: the only place that maps errors."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from tritonclient.utils import InferenceServerException

from m2f.errors import M2FError
from m2f_client.client_errors import (
    InvalidRequest,
    ModelNotFound,
    NoSharedMemory,
    ServerError,
    ServerUnavailable,
    Timeout,
)
from m2f_client.transports.proxies import Proxy

_BY_STATUS: dict[str | None, type[M2FError]] = {
    None: InvalidRequest,  # tritonclient refused to send it
    "400": InvalidRequest,
    "StatusCode.INVALID_ARGUMENT": InvalidRequest,
    "404": ModelNotFound,
    "StatusCode.NOT_FOUND": ModelNotFound,
    "413": InvalidRequest,  # by a front
    "StatusCode.RESOURCE_EXHAUSTED": InvalidRequest,  # by a front, for a message that is too large
    "429": ServerUnavailable,  # by a front
    "502": ServerUnavailable,  # by a front
    "503": ServerUnavailable,
    "StatusCode.UNAVAILABLE": ServerUnavailable,
    "StatusCode.CANCELLED": ServerUnavailable,  # by a server that shuts down: a caller's own cancel has no status
    "504": Timeout,
    "StatusCode.DEADLINE_EXCEEDED": Timeout,
}
_BY_FRONT = {"413": "the body is too large", "429": "too many requests", "502": "bad gateway", "503": "unavailable"}
# gRPC says UNAVAILABLE both for "no connection" and for a server that refuses work: only the words differ
_NO_CONNECTION = re.compile(
    r"failed to connect|all backends failing|resolving|resolution failed|socket closed|"
    r"connection (reset|refused|closed)|broken pipe",
    re.IGNORECASE,
)
_NOT_GRPC = re.compile(r"Expected SETTINGS frame|http1\.x server", re.IGNORECASE)
_TLS_FAILED = re.compile(r"handshake failed|certificate|verification check", re.IGNORECASE)
_ERRNO = re.compile(r"\[Errno (\d+)\]")
_LAST_ERROR = re.compile(r".*last error: (\w+: )?", re.DOTALL)
_HUNG_UP = re.compile(r"closed|disconnected|reset|broken pipe", re.IGNORECASE)
_RESTRICTED = re.compile(r"restricted, expecting header '([^']+)'")  # UNAVAILABLE over gRPC
_SHARED_MEMORY = re.compile(r"shared memory size specified|shared memory region:? '/?m2f-client-")  # a client's region
_UNLOADED = "no available versions"  # of a model that the server had: it shuts down, or is drained
_PREFIXES = re.compile(r"^(?:\[(?:StatusCode\.\w+|\d{3}|request id: [^\]]*)\]\s*|in ensemble '[^']*',\s*)+")
_FAILED_STEP = re.compile(r"Failed to process the request\(s\) for model '(\w+?)(?:_\d+)*', message: ")
_TRACEBACK = re.compile(r"\s*\n+At:\n.*", re.DOTALL)


@contextmanager
def translated(
    kinds: tuple[type[Exception], ...], url: str, timeout: float | None, proxy: Proxy | None = None
) -> Iterator[None]:
    """Raise the client's exception in place of any of `kinds` in the block; see `translate`."""
    try:
        yield
    except kinds as error:
        raise translate(error, url, timeout, proxy) from error


def clean(message: str) -> str:
    """Return a server's message without status tags, request ids, ensemble prefix and server-side traceback.

    >>> clean("[400] in ensemble 'mask2former', image: not a JPEG, PNG or WebP")
    'image: not a JPEG, PNG or WebP'
    """
    message = _TRACEBACK.sub("", _PREFIXES.sub("", message.strip()))
    return _FAILED_STEP.sub(r"\1 failed: ", message).strip()


def translate(error: Exception, url: str, timeout: float | None, proxy: Proxy | None = None) -> M2FError:
    """Return the client's exception for what a library raised.

    Args:
        error: an InferenceServerException (its message is None if the answer is not Triton's), an OSError, or an error
            of the HTTP library.
        url: the address as the user wrote it, for the message.
        timeout: seconds that the call was given, for the message.
        proxy: the proxy in use, for the message.
    """
    if isinstance(error, InferenceServerException):
        return _from_server(error.status(), error.message(), url, timeout, proxy)
    causes = list(_causes(error))
    way = _way(proxy)
    for cause in causes:
        if isinstance(cause, TimeoutError):
            return timed_out(url, timeout, proxy)
        if isinstance(cause, ssl.SSLError | ssl.CertificateError):
            return _no_tls(url, str(cause))
    if any(_HUNG_UP.search(str(cause)) for cause in causes):
        return ServerUnavailable(f"the server at {url} closed the connection{way}")
    for cause in reversed(causes):
        if isinstance(cause, OSError):
            found = _ERRNO.search(str(cause))  # asyncio has one error, without a number, for several addresses
            number = cause.errno or int(found[1] if found else 0)
            system = os.strerror(number) if number > 0 else cause.strerror
            return _nobody_there(url, system or str(cause), proxy)
    return ServerUnavailable(f"what answers at {url} does not speak HTTP{way}; is it the gRPC port (grpc://)?")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what lies below it: libraries wrap the system's errors, more than once."""
    while error is not None:
        yield error
        group = getattr(error, "exceptions", ())  # each address of a name has failed: the first one's error will do
        error = error.__cause__ or error.__context__ or next(iter(group), None)


def _from_server(status: str | None, raw: str | None, url: str, timeout: float | None, proxy: Proxy | None) -> M2FError:
    kind = _BY_STATUS.get(status, ServerError)
    if raw is None and status in _BY_FRONT:
        raw = f"{_BY_FRONT[status]} ({status}){_way(proxy)}"
    if kind is Timeout:
        return timed_out(url, timeout, proxy)
    if raw is not None and (restricted := _RESTRICTED.search(raw)):
        return InvalidRequest(f"the server wants a secret for this: headers={{{restricted[1]!r}: ...}}")
    if raw is not None and _SHARED_MEMORY.search(raw):
        return NoSharedMemory(clean(raw))
    if raw is None or (kind is ModelNotFound and "model" not in raw):  # another server's 404
        return ServerError(f"what answers at {url} is not a Triton server ({status}){_way(proxy)}")
    if kind is ModelNotFound and _UNLOADED in raw:
        kind = ServerUnavailable
    if kind is ServerUnavailable and _NO_CONNECTION.search(raw):
        return _no_connection(raw, url, proxy)
    message = clean(raw)
    if kind is ServerUnavailable:
        message = f"the server at {url} takes no work now: {message}"
    if kind is ModelNotFound:
        message = f"{message} (server {url})"
    return kind(message or f"the server at {url} gave no reason ({status}){_way(proxy)}")


def _no_connection(raw: str, url: str, proxy: Proxy | None) -> ServerUnavailable:
    """Return the error of a gRPC connection that cannot be made, and what to try if another protocol answers."""
    if _TLS_FAILED.search(raw):
        return _no_tls(url, _LAST_ERROR.sub("", raw))
    reason = "no gRPC" if _NOT_GRPC.search(raw) else raw.rsplit(": ", 1)[-1].rstrip("]")
    if reason in ("no gRPC", "Socket closed"):
        reason += f"; is it the HTTP port, http{url.removeprefix('grpc')}?"
    return _nobody_there(url, reason, proxy)


def timed_out(url: str, timeout: float | None, proxy: Proxy | None = None) -> Timeout:
    """Return the error of a call that was given `timeout` seconds."""
    given = f" within {timeout:g} s" if timeout is not None else ""
    return Timeout(f"no answer from {url}{given}{_way(proxy)}; a longer timeout may help")


def _nobody_there(url: str, reason: str, proxy: Proxy | None = None) -> ServerUnavailable:
    protocol = "gRPC" if url.startswith("grpc") else "HTTP"
    return ServerUnavailable(f"no {protocol} server at {url} ({reason}{_way(proxy)}); start one with: m2f serve")


def _way(proxy: Proxy | None) -> str:
    return f", {proxy.note}" if proxy is not None else ""


def _no_tls(url: str, reason: str) -> ServerUnavailable:
    return ServerUnavailable(f"no TLS connection to {url} ({reason}); see tls=Tls(ca=..., cert=..., key=...)")
