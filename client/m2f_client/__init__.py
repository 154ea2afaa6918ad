"""Client of m2f: `Client(url).predict(image) -> Result`."""

from m2f.errors import M2FError
from m2f_client.client import AsyncClient, Client
from m2f_client.client_errors import (
    InvalidAddress,
    InvalidRequest,
    ModelNotFound,
    NoSharedMemory,
    OutputNotRequested,
    ServerError,
    ServerUnavailable,
    Timeout,
    UnreadableImage,
)
from m2f_client.result import Result
from m2f_client.tls import Tls

__all__ = [
    "AsyncClient",
    "Client",
    "InvalidAddress",
    "InvalidRequest",
    "M2FError",
    "ModelNotFound",
    "NoSharedMemory",
    "OutputNotRequested",
    "Result",
    "ServerError",
    "ServerUnavailable",
    "Timeout",
    "Tls",
    "UnreadableImage",
]
