"""TLS for the server's gRPC port. Triton has no TLS for HTTP, so HTTP then listens on loopback (docs/security.md)."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from m2f_server.serve_errors import TlsError


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """Certificate files in PEM format. They are checked here, because Triton would start and refuse every client.

    Attributes:
        cert: file with the server's certificate and its chain.
        key: file with the private key of the certificate, without a passphrase.
        client_ca: file with the authorities of client certificates. If given, only clients with such a certificate are
            accepted (mTLS).

    Raises:
        TlsError: a file is missing or invalid.
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
        """Command-line options of `tritonserver`, with absolute paths."""
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
