"""Restrict the interfaces that change a running server to callers with a secret.

By default Triton lets every caller do everything. Loading a model runs the model's code. A shared-memory region may be
the server's own. Trace and log settings name files to write. So these four interfaces need a header with a secret, over
HTTP and gRPC. Health, metadata, configuration, statistics and inference stay open.
"""

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from m2f_server.serve_errors import AccessError

RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
_KEY = "m2f-admin"
# Triton fixes the header's name for gRPC; HTTP uses the same name
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
        """Headers of a request to a restricted interface, over HTTP and gRPC."""
        return {ADMIN_HEADER: self.token}

    @property
    def arguments(self) -> list[str]:
        """Command-line options of `tritonserver`."""
        apis = ",".join(RESTRICTED)
        return [
            f"--http-restricted-api={apis}:{ADMIN_HEADER}={self.token}",
            f"--grpc-restricted-protocol={apis}:{_KEY}={self.token}",
        ]


def read_access(token_file: Path | None) -> Access:
    """Return the secret in a file, or a random secret.

    Args:
        token_file: file with the token alone; white space around the token is ignored. None makes a random token.

    Raises:
        AccessError: the file cannot be read, or the token is invalid.
    """
    if token_file is None:
        return Access()
    try:
        return Access(token_file.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(f"admin token file {token_file}: {error}") from error
    except AccessError as error:
        raise AccessError(f"admin token file {token_file}: {error}") from None
