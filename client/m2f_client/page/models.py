"""The models that the page offers, and a client for each."""

from __future__ import annotations

from m2f.errors import M2FError
from m2f_client.page.timed_client import TimedClient
from m2f_client.transports.protocol import Connection
from m2f_client.transports.served_models import served_models
from m2f_client.transports.waiting import run_blocking


class Models:
    """The public models of a server. Safe to share between threads.

    Args:
        connection: the connection to the server; `close` closes it.
        first: name of the model that the page begins with.
        timeout: seconds for a whole request.

    Attributes:
        names: names of the models, `first` at the front; `first` alone if the server does not tell its models.
        url: address of the server.

    Raises:
        ServerUnavailable, ModelNotFound, Timeout, ServerError: see `m2f_client.client_errors`.
    """

    def __init__(self, connection: Connection, *, first: str, timeout: float) -> None:
        self._connection, self._timeout = connection, timeout
        self._clients = {first: TimedClient(connection, model=first, timeout=timeout)}
        self.url = connection.url
        try:
            others = [model.name for model in run_blocking(served_models(connection, timeout))]
        except M2FError:
            others = []  # a proxy may block statistics; the first model is shown all the same
        self.names = list(dict.fromkeys([first, *others]))

    def client(self, name: str) -> TimedClient:
        """Return the client of a model, which is made when the model is first chosen.

        Raises:
            M2FError: as the constructor.
        """
        if name not in self._clients:
            self._clients[name] = TimedClient(self._connection, model=name, timeout=self._timeout)
        return self._clients[name]

    def close(self) -> None:
        """Close the connection."""
        self._clients[self.names[0]].close()
