"""Client of m2f: `Client(url).predict(image) -> Result`."""

from m2f_client.client import Client
from m2f_client.errors import (
    InvalidAddress,
    InvalidRequest,
    M2FError,
    ModelNotFound,
    OutputNotRequested,
    ServerError,
    ServerUnavailable,
    Timeout,
    UnreadableImage,
)
from m2f_client.result import Result

__all__ = [
    "Client",
    "InvalidAddress",
    "InvalidRequest",
    "M2FError",
    "ModelNotFound",
    "OutputNotRequested",
    "Result",
    "ServerError",
    "ServerUnavailable",
    "Timeout",
    "UnreadableImage",
]
