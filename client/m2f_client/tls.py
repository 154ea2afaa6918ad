"""Certificates for `https://` and `grpcs://`."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from m2f_client.client_errors import InvalidAddress

_Path = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files in PEM format.

    Attributes:
        ca: certificates of the authorities that may sign the server's certificate. None: over HTTP the system's
            authorities, over gRPC the ones that gRPC brings along (or `GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`).
        cert: the client's certificate and its chain, for a server that asks for one (mTLS).
        key: private key of `cert`, without a passphrase.
    """

    ca: _Path | None = None
    cert: _Path | None = None
    key: _Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return a client's `SSLContext` that checks certificate and host name.

        Raises:
            InvalidAddress: a file is missing, or has no certificate or key in it.
        """
        if (self.cert is None) != (self.key is None):
            raise InvalidAddress("tls: cert and key go together; give both or neither")
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:  # SSLError is one
            if error.filename and error.filename == os.environ.get("SSLKEYLOGFILE"):
                raise InvalidAddress(f"tls: the environment variable SSLKEYLOGFILE: {error}") from error
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
