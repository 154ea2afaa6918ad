"""TLS of the server's gRPC port. Triton's HTTP has none, so with TLS it stays on loopback (see docs/security.md)."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from m2f_server.serve_errors import TlsError


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """Files in PEM format, checked when this is made: Triton would start without a word and refuse every client.

    Attributes:
        cert: the server's certificate and its chain.
        key: its private key, without a passphrase.
        client_ca: authorities of the clients' certificates. Given, only clients with one are let in (mTLS).

    Raises:
        TlsError: a file is missing, or is not what it should be.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password=_refuse_to_ask)
        except OSError as error:  # SSLError is one
            raise TlsError(f"{self.cert} and {self.key} are not a certificate and its key: {error}") from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except OSError as error:
                raise TlsError(f"{self.client_ca} holds no certificates: {error}") from error

    @property
    def arguments(self) -> list[str]:
        """Options of `tritonserver`, whose working folder is another one."""
        arguments = [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={self.cert.absolute()}",
            f"--grpc-server-key={self.key.absolute()}",
        ]
        if self.client_ca is not None:
            arguments += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca.absolute()}"]
        return arguments


def _refuse_to_ask() -> str:
    raise TlsError("the private key has a passphrase; give one without (openssl pkey -in KEY -out PLAIN)")
