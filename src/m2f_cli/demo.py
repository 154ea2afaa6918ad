"""`m2f demo`: serve the page until Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import click

from m2f.errors import M2FError
from m2f_cli.options import model_option, timeout_option, url_option
from m2f_client.client_errors import InvalidAddress
from m2f_client.images import SERVED_SUFFIXES
from m2f_client.printable import complain
from m2f_client.transports.address import Endpoint
from m2f_client.transports.connect import connect


@click.command()
@url_option
@model_option
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address of the page, or a name; 0.0.0.0 lets in everyone who can reach this machine.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True,
              help="Port of the page; 0 picks a free one.")  # fmt: skip
@click.option("--examples", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Offer the images in this folder as examples.")  # fmt: skip
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser of this machine.")
@timeout_option
def demo(
    *, url: str, model: str, host: str, port: int, examples: Path | None, open_browser: bool, timeout: float
) -> None:
    """Try a server in the browser.

    Drop an image, move the minimum score, choose a model and classes. The page shows the instances and the time of each
    step on the server. It works without the internet and sends images to the server only. Ctrl-C stops the page.

    Exit code: 0 stopped; 1 the server does not answer, or the port is taken; 2 wrong usage.
    """
    endpoint, images = _endpoint(url), _images(examples)
    try:
        serving = _serving(endpoint, model, images, host=host, port=port, timeout=timeout)
        with suppress(KeyboardInterrupt), serving as address:
            click.echo(f"m2f: the page is at {address} (Ctrl-C stops it)")
            if open_browser:
                webbrowser.open(address)
            signal.pause()
    except M2FError as error:
        complain(str(error))
        sys.exit(1)


def _endpoint(url: str) -> Endpoint:
    try:
        endpoint = Endpoint.parse(url)
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    if len(endpoint.targets) > 1:
        raise click.BadParameter("the page shows the statistics of one server: give one address", param_hint="--url")
    return endpoint


def _images(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    images = sorted(
        path.resolve() for path in folder.iterdir() if path.suffix.lower() in SERVED_SUFFIXES and path.is_file()
    )
    if not images:
        raise click.BadParameter(f"no {', '.join(SERVED_SUFFIXES)} in {folder}", param_hint="--examples")
    return images


@contextmanager
def _serving(
    endpoint: Endpoint, model: str, images: list[Path], *, host: str, port: int, timeout: float
) -> Iterator[str]:
    """Serve the page until the block ends, and give its address; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from m2f_client.page.models import Models  # noqa: PLC0415

    with closing(Models(connect(endpoint), first=model, timeout=timeout)) as models:
        os.environ.update(no_proxy="*", NO_PROXY="*")  # from here on for Gradio, which asks its own page if it is there
        from m2f_client.page.page import served  # noqa: PLC0415 (gradio takes seconds to import)

        with served(models, images, host=host, port=port) as address:
            yield address
