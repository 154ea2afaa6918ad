"""`m2f export`: a checkpoint in, a repository that Triton serves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from m2f.preprocess import LAYOUTS
from m2f_export.export_errors import ExportError
from m2f_export.head import MASKS
from m2f_export.pipeline import NOT_ON_CPU, ExportRequest, export_graph, export_repository
from m2f_export.precision import PRECISIONS

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=PATH)
@click.argument("weights", type=PATH, required=False)
@click.option("--repository", type=PATH, help="Folder to make: a model repository. An earlier export is replaced.")
@click.option("--onnx", type=PATH, help="Write the ONNX graph alone to this file, in place of a repository.")
@click.option(
    "--deploy-config", type=PATH, help="MMDeploy's deploy config, .py or .json: its post_processing keys hold."
)
@click.option("--size", type=int, nargs=2, metavar="HEIGHT WIDTH", help="Fix the input's size.  [default: free]")
@click.option("--layout", type=click.Choice(LAYOUTS), default=LAYOUTS[0], show_default=True,
              help="The input: pixels, normalised in the graph; or floats, normalised before it.")  # fmt: skip
@click.option(
    "--precision", type=click.Choice(PRECISIONS), help="Of the graph.  [default: the deploy config's, or fp32]"
)
@click.option(
    "--head", type=click.Choice(MASKS), help="Also serve a graph with its head, masks at full size or stride 4."
)
@click.option("--engine", is_flag=True, help="Also build a TensorRT engine.")
@click.option(
    "--target", help="What the engine is for: a Triton container (26.07-py3) or a TensorRT version (10.14.1)."
)
@click.option(
    "--timing-cache", type=PATH, help="File of TensorRT's kernel times: the next build on the same GPU is quicker."
)
@click.option(
    "--image",
    "images",
    type=PATH,
    multiple=True,
    help="Compare on this picture; may be repeated.  [default: random ones]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="Mean difference of a logit allowed between float32 steps.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def export(repository: Path | None, onnx: Path | None, *, as_json: bool, **options: Any) -> None:
    """Turn a trained Mask2Former into a model repository.

    MODEL is an mmdetection configuration and WEIGHTS its checkpoint, or an ONNX file that MMDeploy made of it; or
    MODEL is a folder of Hugging Face (Mask2Former, MaskFormer, EoMT) and stands alone.

    Every step is compared with the one before, on pictures: PyTorch, ONNX Runtime, half precision, Triton. Where one
    drifts, nothing is written.
    """
    if (repository is None) == (onnx is None):
        raise click.UsageError("give one of --repository and --onnx")
    notes = Console(stderr=True, highlight=False)
    request = ExportRequest(**options)
    make, target = (export_repository, repository) if repository else (export_graph, onnx)
    assert target is not None
    try:
        report = make(request, target, lambda line: notes.print(line, soft_wrap=True))
    except ExportError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    console = Console(highlight=False)
    console.print(ladder_table(report["comparison"]))
    console.print(f"wrote {target}", soft_wrap=True)
    if repository and options["precision"] != NOT_ON_CPU:
        console.print(f"serve it: m2f serve --model-repository {target} --config-name cpu", soft_wrap=True)


def ladder_table(comparison: dict[str, Any]) -> Table:
    """Lay out the comparison of each step with the one before."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ("", "cls_logits\nmax, mean", "mask_logits\nmax, mean", "instances\nmatched", "mask\nIoU", "score\nmax")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    table.add_row(comparison["first"])
    for step in comparison["steps"]:
        extra = f" +{step['extra']}" if step["extra"] else ""
        table.add_row(
            step["name"],
            f"{step['cls_max']:.1e} {step['cls_mean']:.1e}",
            f"{step['mask_max']:.1e} {step['mask_mean']:.1e}",
            f"{step['matched']}/{step['instances']}{extra}",
            f"{step['iou']:.4f}",
            f"{step['score_max']:.1e}",
        )
    return table
