"""Run the real `tritonserver` on a model repository: `with serve(...) as server:`, or `m2f serve`."""

from m2f_server.access import ADMIN_HEADER
from m2f_server.launch import Server, serve
from m2f_server.serve_errors import (
    AccessError,
    AddressError,
    LibraryMissingError,
    ModelLoadError,
    PortTakenError,
    RepositoryError,
    ServeError,
    ServerCrashedError,
    ServerNotFoundError,
    StartTimeoutError,
    TlsError,
)
from m2f_server.server_tls import ServerTls

__all__ = [
    "ADMIN_HEADER",
    "AccessError",
    "AddressError",
    "LibraryMissingError",
    "ModelLoadError",
    "PortTakenError",
    "RepositoryError",
    "ServeError",
    "Server",
    "ServerCrashedError",
    "ServerNotFoundError",
    "ServerTls",
    "StartTimeoutError",
    "TlsError",
    "serve",
]
