"""`m2f demo`: serve the page until Ctrl-C."""

from __future__ import annotations

import signal
import socket
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import click

from m2f.errors import M2FError
from m2f_client.client_errors import InvalidAddress
from m2f_client.printable import printable
from m2f_client.transports.address import DEFAULT_URL, Endpoint, connect

if find_spec("gradio") is None:  # importing it takes seconds, which `m2f --help` should not
    raise ModuleNotFoundError("No module named 'gradio'", name="gradio")

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@click.command()
@click.option("--url", default=DEFAULT_URL, show_default=True, help="The server: grpc://HOST:PORT or http://HOST:PORT.")
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address of the page; 0.0.0.0 lets in everybody who reaches this machine.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True,
              help="Port of the page; 0 picks a free one.")  # fmt: skip
@click.option("--examples", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Offer the images in this folder as examples.")  # fmt: skip
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser of this machine.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, metavar="SECONDS",
              show_default="60", help="Wait no longer for an answer.")  # fmt: skip
def demo(*, url: str, host: str, port: int, examples: Path | None, open_browser: bool, timeout: float) -> None:
    """Try a server in the browser: drop an image, move the threshold, choose classes.

    The page shows the instances, and how long each step of the server took. It works without the internet and sends
    nothing to anyone but the server. Ctrl-C stops it.

    Exit code: 0 stopped; 1 the server does not answer, or the port is taken; 2 wrong usage.
    """
    endpoint, images = _endpoint(url), _images(examples)
    try:
        with suppress(KeyboardInterrupt), _serving(endpoint, images, host=host, port=port, timeout=timeout) as address:
            click.echo(f"m2f: the page is at {address} (Ctrl-C stops it)")
            if open_browser:
                webbrowser.open(address)
            signal.pause()
    except M2FError as error:
        click.echo(f"m2f: {printable(str(error))}", err=True)
        sys.exit(1)


def _endpoint(url: str) -> Endpoint:
    try:
        endpoint = Endpoint.parse(url)
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    if len(endpoint.targets) > 1:
        raise click.BadParameter("the page shows the statistics of one server: give one", param_hint="--url")
    return endpoint


def _images(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    images = sorted(path.resolve() for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not images:
        raise click.BadParameter(f"no {', '.join(_SUFFIXES)} in {folder}", param_hint="--examples")
    return images


@contextmanager
def _serving(endpoint: Endpoint, images: list[Path], *, host: str, port: int, timeout: float) -> Iterator[str]:
    """Serve the page until the block ends, and give its address; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from m2f_client.page.page import served  # noqa: PLC0415
    from m2f_client.page.timed_client import TimedClient  # noqa: PLC0415

    with (
        closing(TimedClient(connect(endpoint), timeout=timeout)) as server,
        served(server, images, host=host, port=_free_port(host, port)) as address,
    ):
        yield address


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0.

    Raises:
        M2FError: it cannot be listened on.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the page does
            probe.bind((host, port))
            free: int = probe.getsockname()[1]
            return free
    except OSError as error:
        raise M2FError(f"cannot serve the page at {host}:{port} ({error.strerror or error}); see --port") from error
