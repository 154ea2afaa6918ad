"""`m2f eval`: how good a server's model is on a COCO data set, and how it differs from another server's."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from m2f.errors import M2FError
from m2f_cli.options import (
    concurrency_option,
    model_option,
    overlap_option,
    parameter_option,
    tile_option,
    tiling_of,
    timeout_option,
    url_option,
    whole_option,
)
from m2f_client.client import Client
from m2f_client.client_errors import InvalidAddress
from m2f_client.evaluation import report
from m2f_client.evaluation.collect import Document, Evaluation
from m2f_client.evaluation.dataset import read_instances, read_panoptic
from m2f_client.evaluation.evaluate import Evaluated, evaluate_instances
from m2f_client.evaluation.panoptic import EvaluatedPanoptic, evaluate_panoptic
from m2f_client.printable import complain
from m2f_client.transports.address import Endpoint, is_address
from m2f_client.transports.protocol import Parameter


@click.command(name="eval")
@click.argument("dataset", type=click.Path(exists=True, path_type=Path))
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Folder of the images. Default: searched for beside the annotations.")  # fmt: skip
@url_option
@model_option
@click.option(
    "--against",
    metavar="URL|FILE",
    help="Also compare with another server, or with the results.json of another run (not with --panoptic).",
)
@click.option("--against-model", metavar="NAME", help="Model of --against URL. Default: that of --model.")
@click.option(
    "--panoptic", is_flag=True, help="Compute panoptic quality, not AP; DATASET has COCO panoptic annotations."
)
@click.option("--by-index", is_flag=True,
              help="Match classes and categories by their order (ids ascending). Default: by name.")  # fmt: skip
@click.option("--score-threshold", type=float, metavar="SCORE",
              help="Minimum score (0 to 1). Default: 0, because AP counts all scores.")  # fmt: skip
@parameter_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Write metrics.json and, for instances, results.json (COCO) and precision_recall.png.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@tile_option
@overlap_option
@whole_option
@concurrency_option
@timeout_option
def evaluate(
    *,
    dataset: Path,
    images: Path | None,
    url: str,
    model: str,
    against: str | None,
    against_model: str | None,
    panoptic: bool,
    by_index: bool,
    score_threshold: float | None,
    extra: tuple[tuple[str, Parameter], ...],
    out: Path | None,
    as_json: bool,
    tile: int | None,
    overlap: float | None,
    whole: bool,
    concurrency: int,
    timeout: float,
) -> None:
    """Measure a server on a COCO data set.

    The figures are mask and box AP, or panoptic quality.

    DATASET is a COCO annotation file, or a folder with annotations/*.json or *.json. The model's classes are the
    categories of the same name. Images that fail are reported on standard error and left out.

    Exit code: 0 all images worked; 1 some failed, or there is no figure; 2 wrong usage.
    """
    if panoptic and against and not is_address(against):
        raise click.UsageError("--panoptic compares with a server only: --against URL")
    if against_model and not is_address(against or ""):
        raise click.UsageError("--against-model is the model of another server: --against URL")
    tiling = tiling_of(tile, overlap, whole)
    if panoptic and tiling is not None:
        raise click.UsageError("--panoptic is not available with --tile: segments cannot be put together of tiles")
    threshold = 0.0 if score_threshold is None else score_threshold
    parameters = dict(extra) if panoptic else {"score_threshold": threshold, **dict(extra)}
    try:
        for address in filter(is_address, (url, against or "")):
            Endpoint.parse(address)  # before hours of work
        truth = (read_panoptic if panoptic else read_instances)(dataset, images)
        evaluation = Evaluation(truth, parameters, by_index, concurrency, tiling)
        with Client(url, timeout=timeout, model=model) as client:
            evaluated = (evaluate_panoptic if panoptic else evaluate_instances)(client, evaluation)
        if against:
            evaluated.document["against"] = _compare(evaluated, against, against_model or model, timeout)
        if out is not None:
            report.write(out, evaluated)
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--url or --against") from None
    except M2FError as error:
        complain(str(error))
        sys.exit(1)
    sys.exit(0 if report.show(evaluated.document, as_json=as_json) else 1)


def _compare(evaluated: Evaluated | EvaluatedPanoptic, against: str, model: str, timeout: float) -> Document:
    if isinstance(evaluated, Evaluated) and not is_address(against):
        return evaluated.against_file(Path(against))
    with Client(against, timeout=timeout, model=model) as other:
        return evaluated.against_server(other)
