"""Who may do what: the interfaces that change a running server answer only to those who know a secret.

Triton gives everybody who reaches a port all that it can do. Loading a model runs its code, a shared-memory region
may be the server's own, trace and log settings name files to write: these four need a header with a secret, over HTTP
and gRPC. Health, metadata, configuration, statistics and inference stay open to those who reach the port.
"""

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from m2f_server.serve_errors import AccessError

RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
_KEY = "m2f-admin"
# gRPC's name for it is fixed by Triton; HTTP's is made the same, so that one header does for both
ADMIN_HEADER = f"triton-grpc-protocol-{_KEY}"
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")


@dataclass(frozen=True)
class Access:
    """The secret of one server.

    Attributes:
        token: 16 to 256 letters, digits, `.`, `_`, `~` or `-`; a random one by default. Not in the repr.

    Raises:
        AccessError: the token is too short, too long or has other characters.
    """

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.token):
            raise AccessError("the admin token must be 16 to 256 letters, digits or ._~- (openssl rand -hex 32)")

    @property
    def headers(self) -> dict[str, str]:
        """What a request to a restricted interface must carry, over HTTP and over gRPC."""
        return {ADMIN_HEADER: self.token}

    @property
    def arguments(self) -> list[str]:
        """Options of `tritonserver`."""
        apis = ",".join(RESTRICTED)
        return [
            f"--http-restricted-api={apis}:{ADMIN_HEADER}={self.token}",
            f"--grpc-restricted-protocol={apis}:{_KEY}={self.token}",
        ]


def read_access(token_file: Path | None) -> Access:
    """Return the secret that a file holds, or a random one where there is no file.

    Args:
        token_file: the token and nothing else; white space around it does not count.

    Raises:
        AccessError: the file cannot be read, or holds no token that can be used.
    """
    if token_file is None:
        return Access()
    try:
        return Access(token_file.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(f"admin token file {token_file}: {error}") from error
    except AccessError as error:
        raise AccessError(f"admin token file {token_file}: {error}") from None
