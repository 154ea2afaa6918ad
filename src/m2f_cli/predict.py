"""`m2f predict`: send images to a server; print and write what it finds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from m2f_cli.options import (
    ShardOf,
    concurrency_option,
    model_option,
    overlap_option,
    parameter_option,
    parquet_option,
    refuse_same_file,
    tile_option,
    tiling_of,
    timeout_option,
    url_option,
    whole_option,
)
from m2f_client.client import Client
from m2f_client.client_errors import InvalidAddress, InvalidRequest, UnreadableImage
from m2f_client.predict.run import STDOUT, PredictOptions, run
from m2f_client.predict.shards import WHOLE, Shard
from m2f_client.predict.sources import STDIN, Sources, expand
from m2f_client.printable import complain
from m2f_client.transports.protocol import Parameter


@click.command()
@click.argument("images", metavar="[IMAGE]...", nargs=-1)
@click.option("--list", "lists", multiple=True, metavar="FILE",
              help="Also the images that this file or object names, one a line. May be repeated.")  # fmt: skip
@click.option(
    "--shard", type=ShardOf(), metavar="I/N",
    help="Only the images of shard I, from 0, of N: a hash of the name decides. Needs its own --jsonl FILE or --out. "
    "m2f merge makes one file of all shards.",
)  # fmt: skip
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
@click.option(
    "--geo", is_flag=True,
    help="Also write STEM.geojson for each GeoTIFF: longitude, latitude and square metres (RFC 7946). Needs --out.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (COCO) instead of tables.")
@click.option(
    "--jsonl", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write a JSON line for each image to this file, as soon as it is done; - prints the lines instead of tables.",
)  # fmt: skip
@parquet_option
@tile_option
@overlap_option
@whole_option
@click.option("--every", type=click.IntRange(min=1), default=1, metavar="N", show_default=True,
              help="Take every N-th frame of a video.")  # fmt: skip
@concurrency_option
@timeout_option
def predict(
    *,
    images: tuple[str, ...],
    lists: tuple[str, ...],
    shard: Shard | None,
    url: str,
    model: str,
    score_threshold: float | None,
    classes: str | None,
    extra: tuple[tuple[str, Parameter], ...],
    timeout: float,
    tile: int | None,
    overlap: float | None,
    whole: bool,
    **options: Any,
) -> None:
    """Find the instances of images.

    An IMAGE is an image file (JPEG, PNG, WebP; TIFF, BMP and others are sent as PNG); a folder, for the images in it
    and below; a quoted pattern such as 'shots/**/*.jpg'; an http(s) address; an object, a folder or a pattern in a
    store (s3://, gs://, az://); a video, whose frames are the images; or - for an image on standard input. Results come
    in the order of the images.

    With --tile, a picture larger than a tile becomes several requests. Its overlay is reduced if the picture has more
    than 32 megapixels.

    Images that fail, and files that are skipped, are reported on standard error. To resume a run with --out or
    --jsonl that was stopped, repeat the command: it does the remaining images, and of a picture the remaining tiles,
    and retries those that failed.

    Exit code: 0 all images worked; 1 some failed, or the run was stopped; 2 wrong usage.
    """
    if not images and not lists:
        raise click.UsageError("nothing to do: name an IMAGE, or a --list of them")
    options["tiling"] = tiling_of(tile, overlap, whole)
    _check(options)
    named = {"score_threshold": score_threshold, "classes": classes}
    parameters = dict(extra) | {name: value for name, value in named.items() if value is not None}
    try:
        sources = expand(images, lists=lists, out=options["out"], shard=shard or WHOLE)
        client = Client(url, timeout=timeout, model=model)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None
    except UnreadableImage as error:
        complain(str(error))
        sys.exit(1)
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    given = PredictOptions(
        sources.names, parameters, sources.refused, sources.note(), shard, sources.listing, timeout=timeout, **options
    )
    if shard is not None:
        _check_shard(given, sources)
    with client:
        sys.exit(run(client, given))


def _check_shard(options: PredictOptions, sources: Sources) -> None:
    """Refuse a shard that could not be merged."""
    if options.journal is None:
        raise click.UsageError("--shard needs --jsonl FILE or --out DIR, of its own for each shard")
    if STDIN in sources.names:
        raise click.UsageError("--shard takes no image on standard input, which each shard would read")
    for name in sources.unlisted:
        complain(f"{name}: {sources.refused[name]}")
    if sources.unlisted:
        sys.exit(1)  # without its images a shard would be complete at once


def _check(options: dict[str, Any]) -> None:
    """Refuse combinations of options that exclude each other."""
    for name in ("raw", "panoptic", "geo"):
        if options[name] and options["out"] is None:
            raise click.UsageError(f"--{name} needs --out DIR")
    for name in ("raw", "panoptic"):
        if options[name] and options["tiling"] is not None:
            raise click.UsageError(f"--{name} is not available with --tile: it belongs to one request, not to several")
    refuse_same_file(("--jsonl", options["jsonl"]), ("--parquet", options["parquet"]))
    if options["as_json"] and options["jsonl"] == STDOUT:
        raise click.UsageError("--json and --jsonl - both print: choose one")
