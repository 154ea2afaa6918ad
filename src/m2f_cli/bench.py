"""`m2f bench`: what a server does for the user's own images, where the time goes, and what to turn."""

from __future__ import annotations

import sys
from typing import Any

import click

from m2f.contract import OUTPUTS, STRUCTURED_OUTPUTS
from m2f_cli.options import MAX_CONCURRENCY, model_option, parameter_option, timeout_option, url_option
from m2f_client.bench.load import Question
from m2f_client.bench.pictures import load
from m2f_client.bench.run import BenchOptions, run
from m2f_client.client_errors import InvalidAddress, InvalidRequest
from m2f_client.predict.sources import Sources, expand
from m2f_client.printable import complain
from m2f_client.transports.address import Endpoint
from m2f_client.transports.protocol import Parameter


class Numbers(click.ParamType):
    """Numbers of requests in flight, separated by commas."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers, each once, in their order."""
        texts = [text.strip() for text in value.split(",")]
        if not all(text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_CONCURRENCY for text in texts):
            self.fail(f"{value!r}: allowed are numbers from 1 to {MAX_CONCURRENCY}, separated by commas", param, ctx)
        return tuple(dict.fromkeys(map(int, texts)))


@click.command()
@click.argument("images", metavar="[IMAGE...]", nargs=-1)
@url_option
@model_option
@click.option("--concurrency", type=Numbers(), default="1,2,4,8,16", metavar="N,N,...", show_default=True,
              help=f"Images in flight at once, each number measured by itself; up to {MAX_CONCURRENCY}.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=5, metavar="SECONDS", show_default=True,
              help="Length of each measurement.")  # fmt: skip
@click.option("--output", "outputs", type=click.Choice([tensor.name for tensor in OUTPUTS]), multiple=True,
              metavar="NAME", help="An output to ask for, e.g. masks. May be repeated. Default: all structured "
              "outputs, as m2f predict.")  # fmt: skip
@parameter_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@timeout_option
def bench(
    *,
    images: tuple[str, ...],
    url: str,
    model: str,
    concurrency: tuple[int, ...],
    seconds: float,
    outputs: tuple[str, ...],
    extra: tuple[tuple[str, Parameter], ...],
    as_json: bool,
    timeout: float,
) -> None:
    """Measure a server with your own images.

    For each number of images in flight: images per second, latency, bytes, and where the time goes by the client's
    clock and the server's statistics. Then: what to turn, and the figures that say so.

    An IMAGE is an image file, a folder, a quoted pattern or an http(s) address, as for m2f predict. Images are read
    before anything is timed. Of more than 64 images, 64 are taken, evenly spread. Without IMAGE, a drawn picture is
    sent.

    The server never has more requests than the number in flight. Ctrl-C ends the run after the requests in flight and
    prints what was measured. Images that fail are reported on standard error and left out.

    Exit code: 0 everything worked; 1 something failed, or the run was stopped; 2 wrong usage.
    """
    try:
        endpoint = Endpoint.parse(url)
        sources = expand(images) if images else Sources()
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    pictures = load(sources, timeout=timeout)
    if sources.note():
        complain(str(sources.note()))
    question = Question(model, tuple(outputs) or STRUCTURED_OUTPUTS, dict(extra), timeout)
    options = BenchOptions(endpoint, question, concurrency, seconds, max(1, len(sources.names)), as_json)
    sys.exit(run(pictures, options))
