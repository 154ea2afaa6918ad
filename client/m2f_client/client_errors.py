"""The exceptions of the client: one tree, and each message says what to do.

* ClientError, an `m2f.errors.M2FError`
  * InvalidAddress      the URL given to `Client` is not one, or its headers or certificates cannot be used
  * UnreadableImage     an image cannot be read on this side
  * ServerUnavailable   nobody answers, or the server takes no work now
  * ModelNotFound       the server does not have the model
  * InvalidRequest      the server (or the client, for it) refuses what was sent
  * Timeout             no answer in time
  * ServerError         the server failed
  * NoSharedMemory      client and server cannot share memory, as `shared_memory=True` asks for
  * OutputNotRequested  a result was asked for an output that the request did not name
  * InvalidDataset      `m2f eval` cannot use the data set (stands in `m2f_client.evaluation.dataset`)

The error of the transport, where there is one, stays at `__cause__`.
"""
# ruff: noqa: N818 (names say what happened, as httpx does: "Timeout", not "TimeoutError", which is a builtin)

from m2f.errors import M2FError


class ClientError(M2FError):
    """Base of every error this package raises.

    Attributes:
        request_id: of the request it is about, which the server's log has, too; None where there was none.
    """

    request_id: str | None = None


class InvalidAddress(ClientError):
    """The URL of the server, or the headers or certificates that go with it, cannot be used."""


class UnreadableImage(ClientError):
    """An image file is missing, cannot be read or cannot be decoded on the client's side."""


class ServerUnavailable(ClientError):
    """Nobody answers at the address, or the server turns work away for now (full queue, shutdown)."""


class ModelNotFound(ClientError):
    """The server is up and does not have the model."""


class InvalidRequest(ClientError):
    """The request is wrong: image, parameter, output or batch size. The message is the server's own."""


class Timeout(ClientError):
    """The answer did not come within the timeout of the request; the message ends with its id."""

    def __str__(self) -> str:
        return _with_request_id(self)


class ServerError(ClientError):
    """The server failed while it worked on a valid request; the message ends with the id of the request."""

    def __str__(self) -> str:
        return _with_request_id(self)


class NoSharedMemory(ClientError):
    """Memory cannot be shared with the server: another host, another user, no permission, or no room."""


class OutputNotRequested(ClientError):
    """The request that made this result did not ask for the output that is read now."""


def _with_request_id(error: ClientError) -> str:
    message = " ".join(map(str, error.args))
    return f"{message} (request id {error.request_id})" if error.request_id else message
