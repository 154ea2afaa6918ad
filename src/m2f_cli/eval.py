"""`m2f eval`: how good a server's model is on a COCO data set, and whether another server's is the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from m2f.errors import M2FError
from m2f_cli.options import MAX_CONCURRENCY, KeyValue
from m2f_client.client import Client
from m2f_client.client_errors import InvalidAddress
from m2f_client.evaluation import report
from m2f_client.evaluation.dataset import read_instances, read_panoptic
from m2f_client.evaluation.evaluate import (
    Document,
    Evaluated,
    EvaluatedPanoptic,
    Run,
    against_file,
    against_server,
    evaluate_instances,
    evaluate_panoptic,
    panoptic_against_server,
)
from m2f_client.predict.screen import complain
from m2f_client.printable import printable
from m2f_client.transports.address import DEFAULT_URL
from m2f_client.transports.protocol import Parameter

Connect = Callable[[str], Client]


@click.command(name="eval")
@click.argument("dataset", type=click.Path(exists=True, path_type=Path))
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="The folder of the images. Default: looked for beside the annotations.")  # fmt: skip
@click.option("--url", default=DEFAULT_URL, show_default=True, help="The server: grpc://HOST:PORT or http://HOST:PORT.")
@click.option(
    "--against",
    metavar="URL|FILE",
    help="Also say what differs from another server, or from the results.json of another run (instances).",
)
@click.option(
    "--panoptic", is_flag=True, help="Panoptic quality in place of AP; DATASET has COCO panoptic annotations."
)
@click.option("--by-index", is_flag=True,
              help="The model's classes are the categories, in the order of ids. Default: by name.")  # fmt: skip
@click.option("--score-threshold", type=float, metavar="SCORE",
              help="Least score (0 to 1) that counts. Default: 0, as AP wants it, not the server's.")  # fmt: skip
@click.option("--parameter", "extra", type=KeyValue(), multiple=True, metavar="KEY=VALUE",
              help="Any other request parameter, e.g. iou_threshold=0.7. May be repeated.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Write metrics.json and, of instances, results.json (COCO) and precision_recall.png.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--concurrency", type=click.IntRange(1, MAX_CONCURRENCY), default=4, metavar="N", show_default=True,
              help=f"Images in work at once, up to {MAX_CONCURRENCY}.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, metavar="SECONDS",
              show_default="60", help="Wait no longer for an answer.")  # fmt: skip
@click.pass_obj
def evaluate(
    open_client: Callable[..., Client] | None,
    *,
    dataset: Path,
    images: Path | None,
    url: str,
    against: str | None,
    panoptic: bool,
    by_index: bool,
    score_threshold: float | None,
    extra: tuple[tuple[str, Parameter], ...],
    out: Path | None,
    as_json: bool,
    concurrency: int,
    timeout: float,
) -> None:
    """Measure a server on a data set: COCO's mask and box AP, or panoptic quality.

    DATASET is a COCO annotation file, or a folder with annotations/*.json. The model's classes are the categories of
    the same name. An image that does not work is named on standard error and left out.

    Exit code: 0 all images worked; 1 some did not, or there is no figure; 2 wrong usage.
    """
    if panoptic and against and "://" not in against:
        raise click.UsageError("--panoptic is compared with a server: --against URL")
    threshold = 0.0 if score_threshold is None else score_threshold
    parameters = dict(extra) if panoptic else {"score_threshold": threshold, **dict(extra)}

    def connect(address: str) -> Client:
        return (open_client or Client)(address, timeout=timeout)  # a test hands in its own as click's `obj`

    try:
        truth = (read_panoptic if panoptic else read_instances)(dataset, images)
        run = Run(truth, parameters, by_index, concurrency)
        with connect(url) as client:
            evaluated = evaluate_panoptic(client, run) if panoptic else evaluate_instances(client, run)
        document = evaluated.document
        if against:
            document["against"] = _against(against, evaluated, run, connect)
        if out is not None:
            _write(out, evaluated)
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--url or --against") from None
    except M2FError as error:
        complain(str(error))
        sys.exit(1)
    sys.exit(_show(document, as_json=as_json))


def _against(against: str, evaluated: Evaluated | EvaluatedPanoptic, run: Run, connect: Connect) -> Document:
    if isinstance(evaluated, Evaluated) and "://" not in against:
        return against_file(evaluated, Path(against), run.dataset)
    with connect(against) as other:
        if isinstance(evaluated, Evaluated):
            return against_server(evaluated, other, run)
        return panoptic_against_server(evaluated, other, run)


def _write(out: Path, evaluated: Evaluated | EvaluatedPanoptic) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").write_text(_as_text(evaluated.document) + "\n", encoding="utf-8")
        if isinstance(evaluated, Evaluated):
            rows = [row for image_id in evaluated.rows for row in evaluated.rows[image_id]]
            (out / "results.json").write_text(json.dumps(rows), encoding="utf-8")
            report.draw_curves(evaluated.masks, out / "precision_recall.png")
    except OSError as error:
        raise M2FError(f"cannot write to {out}: {error.strerror or error}") from error


def _as_text(document: Document) -> str:
    return json.dumps(document, indent=1)


def _show(document: Document, *, as_json: bool) -> int:
    """Print the report and, on standard error, what did not work; return the exit code."""
    failed = [_complain(part) for part in (document, document.get("against")) if part is not None]
    if as_json:
        click.echo(_as_text(document))
    else:
        console = Console()
        for part in report.summary(document):
            console.print(Text(printable(part)) if isinstance(part, str) else part, soft_wrap=True)
    return 1 if any(failed) else 0


def _complain(part: Document) -> bool:
    """Say what one server did not do; return whether there was something."""
    server, failures = part.get("server") or part["name"], part["failures"]
    for message in part["warnings"]:
        complain(f"{server}: {message}")
    for failure in failures:
        complain(f"{failure['file_name']}: {failure['reason']}")
    if failures:
        complain(f"{server}: images that did not work, and are in no figure: {len(failures)}")
    return bool(failures)
