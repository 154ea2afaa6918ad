"""What can go wrong when a server is started or runs; every message is one line for people, or says what it quotes."""

from collections.abc import Mapping

from m2f.errors import M2FError


class ServeError(M2FError):
    """Base of everything that `serve` raises."""


class ServerNotFoundError(ServeError):
    """There is no `tritonserver` on PATH and none in the environment, or it does not support this Python."""


class LibraryMissingError(ServeError):
    """A shared library that Triton's Python models need is not on this machine."""


class RepositoryError(ServeError):
    """The model repository does not exist, holds no model, or has no configuration of the name asked for."""


class AccessError(ServeError):
    """The admin token cannot be used."""


class TlsError(ServeError):
    """A certificate or key cannot be used."""


class PortTakenError(ServeError):
    """An address cannot be listened on.

    Attributes:
        protocol: `http`, `grpc` or `metrics`.
        port: the port asked for.
    """

    def __init__(self, *, protocol: str, host: str, port: int, reason: str = "already in use") -> None:
        super().__init__(f"{protocol} port {port} on {host}: {reason} (--{protocol}-port picks another, 0 a free one)")
        self.protocol = protocol
        self.port = port


class ModelLoadError(ServeError):
    """Triton refused at least one model.

    Attributes:
        failures: model name to the reason in the server's log; the cause first, its consequences after it.
    """

    def __init__(self, failures: Mapping[str, str]) -> None:
        (name, reason), *others = failures.items()
        more = f" (also not loaded: {', '.join(other for other, _ in others)})" if others else ""
        super().__init__(f"model '{name}' did not load: {reason}{more}")
        self.failures = dict(failures)


class ServerCrashedError(ServeError):
    """The server ended by itself; the message holds the end of its log."""

    def __init__(self, *, returncode: int, log_tail: str) -> None:
        how = f"was killed by signal {-returncode}" if returncode < 0 else f"ended with exit code {returncode}"
        super().__init__(f"tritonserver {how}; the end of its log:\n{log_tail}")
        self.returncode = returncode


class StartTimeoutError(ServeError):
    """The models were not ready within the time allowed."""


class ServerHungError(ServeError):
    """The server runs but does not serve, and reloading a model does not help."""


class WornOutError(ServeError):
    """The server serves, but holds much that it will not give back."""


class StoppedError(ServeError):
    """The server was told to stop before it was ready."""


class CrashLoopError(ServeError):
    """The server ended again and again; the message holds the last reason."""

    def __init__(self, *, times: int, within: float, last: ServeError) -> None:
        super().__init__(
            f"gave up: {times} times in a row the server served for less than {within:g} s; the last: {last}"
        )


class RolloutError(ServeError):
    """A new engine was refused, and the one before it serves on; the message says why."""
