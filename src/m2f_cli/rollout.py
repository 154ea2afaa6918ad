"""The command `m2f rollout`."""

import json
import signal
import sys
from http import HTTPStatus
from pathlib import Path

import click

from m2f.errors import M2FError
from m2f_backend.calls import CallError
from m2f_client.client_errors import InvalidAddress, UnreadableImage
from m2f_client.files import read_file
from m2f_client.transports.address import Endpoint, announced
from m2f_server.access import read_access
from m2f_server.control import Control
from m2f_server.rollout import Rollout, roll_out
from m2f_server.serve_errors import RolloutError

_FILE = click.Path(dir_okay=False, path_type=Path)
_PIPE_S = 60.0  # longest wait for an image that comes through a pipe


@click.command(
    epilog="To go back, roll out the old file, for example model_repository/mask2former_engine/1/model.plan."
)
@click.argument("engine", type=_FILE)
@click.option(
    "--model-repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    metavar="DIR",
    help="The model repository of the running server; the new version is written to it.",
)
@click.option(
    "--model", metavar="NAME", help="The model whose engine is replaced. Needed where the server has several models."
)
@click.option(
    "--url",
    default="http://127.0.0.1:8000",
    show_default=True,
    help="The server's HTTP address, or the line that m2f serve --json prints.",
)
@click.option("--admin-token-file", type=_FILE, required=True, help="The --admin-token-file of the running m2f serve.")
@click.option(
    "--image",
    "images",
    type=_FILE,
    multiple=True,
    required=True,
    help="An image on which the engines are compared; repeat the option for more.",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="Minimum agreement of the new engine's instances with the old engine's. Use 0 for retrained weights.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def rollout(
    *,
    engine: Path,
    model_repository: Path,
    model: str | None,
    url: str,
    admin_token_file: Path,
    images: tuple[Path, ...],
    min_agreement: float,
    as_json: bool,
) -> None:
    """Replace the engine of a running server.

    ENGINE is a new model.plan or model.onnx. It is loaded beside the serving engine, and both get the same images. If
    the new engine does not load, or finds other instances than the serving engine, it is refused and clients notice
    nothing. Otherwise the new engine takes over between two requests.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a SIGTERM takes the new version back, as Ctrl-C does
    try:
        done = roll_out(
            engine,
            repository=model_repository,
            control=_control(url, admin_token_file),
            images={str(path): _read(path) for path in images},
            min_agreement=min_agreement,
            model=model,
            say=lambda line: click.echo(f"m2f rollout: {line}", err=True),
        )
    except M2FError as error:
        secret = isinstance(error, CallError) and error.status == HTTPStatus.FORBIDDEN
        hint = "; --admin-token-file is not the one of this server" if secret else ""
        click.echo(f"m2f rollout: {error}{hint}", err=True)
        sys.exit(1)
    click.echo(_as_json(done) if as_json else f"{done.model}: version {done.version} serves in place of {done.before}")


def _control(url: str, token_file: Path) -> Control:
    return Control(http_url=_address(url), metrics_url="", access=read_access(token_file))


def _address(url: str) -> str:
    """Return `host:port` of an HTTP address, of `host:port`, or of the line that `m2f serve --json` prints."""
    try:
        url = announced(url, "http") if url.strip().startswith("{") else url.strip()
        endpoint = Endpoint.parse(url if "://" in url else f"http://{url}")
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    if endpoint.scheme != "http" or endpoint.path or len(endpoint.targets) > 1:
        raise click.UsageError(f"--url {url}: give http://host:port, the HTTP port of the server itself")
    return endpoint.targets[0]


def _read(path: Path) -> bytes:
    try:
        return read_file(path, timeout=_PIPE_S)
    except UnreadableImage as error:
        raise RolloutError(f"{path}: {error}") from error


def _as_json(done: Rollout) -> str:
    return json.dumps(
        {
            "model": done.model,
            "before": done.before,
            "version": done.version,
            "agreement": round(done.agreement.share, 6),
            "parity": done.agreement.to_dict(),
        }
    )
