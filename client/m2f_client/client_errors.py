"""The exceptions of the client: one tree, and each message says what to do.

* ClientError, an `m2f.errors.M2FError`
  * InvalidAddress      the URL, the headers or the certificates given to a client cannot be used
  * UnreadableImage     an image file cannot be read by the client
  * ServerUnavailable   no server answers, or the server accepts no work now
  * ModelNotFound       the server does not have the model
  * InvalidRequest      the request is wrong; the server or the client refuses it
  * Timeout             no answer within the timeout
  * ServerError         the server failed
  * NoSharedMemory      client and server cannot share memory, as `shared_memory=True` asks for
  * OutputNotRequested  the request of a result did not name the output that is read
  * InvalidDataset      `m2f eval` cannot use the data set (stands in `m2f_client.evaluation.fields`)

`__cause__` is the transport's error, if there is one.
"""
# ruff: noqa: N818 (names say what happened, as httpx does: "Timeout", not "TimeoutError", which is a builtin)

from m2f.errors import M2FError


class ClientError(M2FError):
    """Base of every error of this package.

    Attributes:
        request_id: id of the failed request, also in the server's log; None if no request was sent.
    """

    request_id: str | None = None


class InvalidAddress(ClientError):
    """The server's URL, the headers or the certificates cannot be used."""


class UnreadableImage(ClientError):
    """An image file is missing, or the client cannot read or decode it."""


class ServerUnavailable(ClientError):
    """No server answers at the address, or the server accepts no work now (full queue, shutdown)."""


class ModelNotFound(ClientError):
    """The server runs but does not have the model."""


class InvalidRequest(ClientError):
    """The request is wrong: image, parameter, output or batch size. The message says what is allowed."""


class Timeout(ClientError):
    """The answer did not come within the request's timeout. The message ends with the request's id."""

    def __str__(self) -> str:
        return _with_request_id(self)


class ServerError(ClientError):
    """The server failed at a valid request. The message ends with the request's id."""

    def __str__(self) -> str:
        return _with_request_id(self)


class NoSharedMemory(ClientError):
    """Memory cannot be shared with the server: another host, another user, no permission, or /dev/shm is full."""


class OutputNotRequested(ClientError):
    """The result does not have the output that is read, because the request did not ask for it."""


def _with_request_id(error: ClientError) -> str:
    message = " ".join(map(str, error.args))
    return f"{message} (request id {error.request_id})" if error.request_id else message
