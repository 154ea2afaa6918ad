"""Certificates for `https://` and `grpcs://`."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import Any

from m2f_client.client_errors import InvalidAddress

_Path = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files in PEM format.

    Attributes:
        ca: certificates of the authorities that the server's must come from. None: over HTTP those of the system,
            over gRPC those that gRPC brings along (or `GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`).
        cert: the client's own certificate and its chain, where the server asks for one (mTLS).
        key: its private key, without a passphrase.
    """

    ca: _Path | None = None
    cert: _Path | None = None
    key: _Path | None = None

    def context(self, module: Any = ssl) -> Any:
        """Return a client's `SSLContext` that checks certificate and host name.

        Args:
            module: `ssl`, or one with the same functions, as gevent's.

        Raises:
            InvalidAddress: a file is missing, or is not what it should be.
        """
        if (self.cert is None) != (self.key is None):
            raise InvalidAddress("tls: cert and key go together; give both or neither")
        try:
            context = module.create_default_context(cafile=self.ca)
        except OSError as error:  # SSLError is one
            raise InvalidAddress(f"tls: {self.ca} holds no certificates: {error}") from error
        try:
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password=_refuse_to_ask)
        except OSError as error:
            raise InvalidAddress(
                f"tls: {self.cert} and {self.key} are not a certificate and its key: {error}"
            ) from error
        return context


def _refuse_to_ask() -> str:
    raise InvalidAddress("tls: the private key has a passphrase; give one without (openssl pkey -in KEY -out PLAIN)")
