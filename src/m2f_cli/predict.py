"""`m2f predict`: send images to a server; print and write what it finds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from m2f_cli.options import concurrency_option, model_option, parameter_option, timeout_option, url_option
from m2f_client.client import Client
from m2f_client.client_errors import InvalidAddress, InvalidRequest
from m2f_client.predict.run import STDOUT, PredictOptions, run
from m2f_client.predict.sources import expand
from m2f_client.transports.protocol import Parameter


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@url_option
@model_option
@click.option("--score-threshold", type=float, help="Minimum score (0 to 1). Default: the server's.")
@click.option("--classes", help="Only these classes, by index or name, comma-separated or a JSON list.")
@parameter_option
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write STEM_overlay.png for each image, STEM_overlay.mp4 for each video, and instances.json (COCO), to this "
    "folder.",
)  # fmt: skip
@click.option("--raw", is_flag=True, help="Also write STEM.npz with cls_logits and mask_logits. Needs --out.")
@click.option(
    "--panoptic", is_flag=True,
    help="Also write STEM_panoptic.png for each image, and panoptic.json (COCO panoptic). Needs --out.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (COCO) instead of tables.")
@click.option(
    "--jsonl", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write a JSON line for each image to this file, as soon as it is done; - prints the lines instead of tables.",
)  # fmt: skip
@click.option("--every", type=click.IntRange(min=1), default=1, metavar="N", show_default=True,
              help="Take every N-th frame of a video.")  # fmt: skip
@concurrency_option
@timeout_option
def predict(
    *,
    images: tuple[str, ...],
    url: str,
    model: str,
    score_threshold: float | None,
    classes: str | None,
    extra: tuple[tuple[str, Parameter], ...],
    timeout: float,
    **options: Any,
) -> None:
    """Find the instances of images.

    An IMAGE is an image file (JPEG, PNG, WebP; TIFF, BMP and others are sent as PNG); a folder, for the images in it
    and below; a quoted pattern such as 'shots/**/*.jpg'; an http(s) address; a video, whose frames are the images; or -
    for an image on standard input. Results come in the order of the images.

    Images that fail, and files that are skipped, are reported on standard error. To resume a run with --out or
    --jsonl that was stopped, repeat the command: it does the remaining images and retries those that failed.

    Exit code: 0 all images worked; 1 some failed, or the run was stopped; 2 wrong usage.
    """
    _check(options)
    named = {"score_threshold": score_threshold, "classes": classes}
    parameters = dict(extra) | {name: value for name, value in named.items() if value is not None}
    try:
        sources = expand(images, out=options["out"])
        client = Client(url, timeout=timeout, model=model)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    with client:
        given = PredictOptions(sources.names, parameters, sources.refused, sources.note(), timeout=timeout, **options)
        sys.exit(run(client, given))


def _check(options: dict[str, Any]) -> None:
    """Refuse combinations of options that exclude each other."""
    for name in ("raw", "panoptic"):
        if options[name] and options["out"] is None:
            raise click.UsageError(f"--{name} needs --out DIR")
    if options["as_json"] and options["jsonl"] == STDOUT:
        raise click.UsageError("--json and --jsonl - both print: choose one")
