"""Run the real `tritonserver` on a model repository: `with serve(...) as server:`, or `m2f serve`."""

from m2f_server.errors import (
    LibraryMissingError,
    ModelLoadError,
    PortTakenError,
    RepositoryError,
    ServeError,
    ServerCrashedError,
    ServerNotFoundError,
    StartTimeoutError,
)
from m2f_server.launch import Server, serve

__all__ = [
    "LibraryMissingError",
    "ModelLoadError",
    "PortTakenError",
    "RepositoryError",
    "ServeError",
    "Server",
    "ServerCrashedError",
    "ServerNotFoundError",
    "StartTimeoutError",
    "serve",
]
