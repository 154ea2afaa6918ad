"""Errors of starting and running a server. A message is one line, unless it quotes a log."""

from collections.abc import Mapping

from m2f.errors import M2FError


class ServeError(M2FError):
    """Base class of the errors that `serve` raises."""


class ShortageError(ServeError):
    """This machine lacks a process, a file descriptor or memory for a start, which says nothing about the server."""


class ServerNotFoundError(ServeError):
    """No `tritonserver` is on PATH or in the environment, or it does not support this Python."""


class LibraryMissingError(ServeError):
    """A shared library that Triton's Python models need is missing."""


class RepositoryError(ServeError):
    """The model repository does not exist, has no model, or no model has the requested configuration."""


class AccessError(ServeError):
    """The admin token is invalid or cannot be read."""


class TlsError(ServeError):
    """A certificate or key is invalid or cannot be read."""


class AddressError(ServeError):
    """An address to listen on does not exist, or does not belong to this machine."""


class PortTakenError(ServeError):
    """A port cannot be listened on.

    Attributes:
        protocol: `http`, `grpc`, `metrics` or `health`.
        port: the requested port.
    """

    def __init__(self, *, protocol: str, host: str, port: int, reason: str = "already in use") -> None:
        super().__init__(f"{protocol} port {port} on {host}: {reason} (--{protocol}-port picks another, 0 a free one)")
        self.protocol = protocol
        self.port = port


class ModelLoadError(ServeError):
    """Triton refused at least one model.

    Attributes:
        failures: reason by model name; causes come before their consequences.
    """

    def __init__(self, failures: Mapping[str, str]) -> None:
        (name, reason), *others = failures.items()
        more = f" (also not loaded: {', '.join(other for other, _ in others)})" if others else ""
        super().__init__(f"model '{name}' did not load: {reason}{more}")
        self.failures = dict(failures)


class ServerCrashedError(ServeError):
    """The server ended by itself; the message has the end of its log.

    Attributes:
        returncode: the server's exit code, negative for a signal.
    """

    def __init__(self, *, returncode: int, log_tail: str) -> None:
        how = f"was killed by signal {-returncode}" if returncode < 0 else f"ended with exit code {returncode}"
        super().__init__(f"tritonserver {how}; the end of its log:\n{log_tail}")
        self.returncode = returncode


class StartTimeoutError(ServeError):
    """The models were not ready in time."""


class ServerHungError(ServeError):
    """The server runs but does not serve, and a reload does not help."""


class WornOutError(ServeError):
    """The server serves, but had so many reloads that it is replaced."""


class StoppedError(ServeError):
    """The server was told to stop before it was ready."""


class CrashLoopError(ServeError):
    """Several servers in a row did not become ready, or never answered right; the message has the last reason."""

    def __init__(self, *, times: int, last: Exception) -> None:
        super().__init__(f"gave up: {times} servers in a row were not ready or never answered right; the last: {last}")


class RolloutError(ServeError):
    """A new engine was refused and the old engine serves; the message says why."""
