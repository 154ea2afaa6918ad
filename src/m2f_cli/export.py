"""`m2f export`: turn a checkpoint into a repository that Triton serves."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from m2f.contract import PUBLIC_MODEL
from m2f.errors import M2FError
from m2f.preprocess import LAYOUTS
from m2f_client.printable import printable
from m2f_export.export_errors import reason
from m2f_export.head import MASKS
from m2f_export.pipeline import NOT_ON_CPU, ExportRequest, export_graph, export_repository
from m2f_export.precision import PRECISIONS
from m2f_export.sources.huggingface_oneformer import TASKS

PATH = click.Path(path_type=Path)


# fmt: off
@click.command()
@click.argument("model", type=PATH)
@click.argument("weights", type=PATH, required=False)
@click.option("--repository", type=PATH,
              help="Add the model to the repository in this folder. An earlier export of the same name is replaced.")
@click.option("--name", default=PUBLIC_MODEL, show_default=True,
              help="Name of the model in the repository, which may hold several.")
@click.option("--describe", type=PATH, metavar="FILE",
              help="MODEL is an ONNX file of any origin; this JSON file describes it.")
@click.option("--task", type=click.Choice(TASKS), help="The task of a Hugging Face OneFormer.")
@click.option("--classes", type=PATH, metavar="FILE",
              help="Text file of the class names, one a line in the order of the labels.  [default: the model's]")
@click.option("--stuff", metavar="CLASSES",
              help="These classes are stuff, by name or index: \"sky,3\" or a JSON list.  [default: the model's]")
@click.option("--onnx", type=PATH, help="Write only the ONNX graph, to this file.")
@click.option("--deploy-config", type=PATH,
              help="Serve with the post_processing of this MMDeploy deploy config (.py, .json).")
@click.option("--size", type=int, nargs=2, metavar="HEIGHT WIDTH", help="Fix the size of the input.  [default: free]")
@click.option("--layout", type=click.Choice(LAYOUTS), default=LAYOUTS[0], show_default=True,
              help="Input: uint8 pixels that the graph normalises, or normalised floats.")
@click.option("--precision", type=click.Choice(PRECISIONS),
              help="Precision of the graph.  [default: the deploy config's, or fp32]")
@click.option("--half-masks", is_flag=True,
              help="Give out the mask logits in half precision: half the bytes from step to step.")
@click.option("--head", type=click.Choice(MASKS),
              help="Also serve a graph that includes its head, with masks at full size or at stride 4.")
@click.option("--engine", is_flag=True, help="Also build a TensorRT engine.")
@click.option("--target", help="Triton container (26.07-py3) or TensorRT version (10.14.1) that will load the engine.")
@click.option("--timing-cache", type=PATH,
              help="Keep TensorRT's kernel times in this file: later builds on this GPU are faster.")
@click.option("--image", "images", type=PATH, multiple=True,
              help="Compare the steps on this picture; may be repeated.  [default: random pictures]")
@click.option("--tolerance", type=click.FloatRange(min=0, min_open=True),
              help="Largest mean difference of a logit between float32 steps.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def export(repository: Path | None, onnx: Path | None, *, as_json: bool, **options: Any) -> None:
    """Turn a trained Mask2Former into a model repository.

    MODEL is a configuration of mmdetection, MMSegmentation or the original Mask2Former (.yaml), and WEIGHTS its
    checkpoint, or an ONNX file that MMDeploy made from it. Or MODEL is a Hugging Face folder (Mask2Former, MaskFormer,
    EoMT, OneFormer), without WEIGHTS. With --describe, MODEL is an ONNX file of any origin. Nothing is downloaded.

    Every step is compared with the step before, on pictures: PyTorch, ONNX Runtime, half precision, Triton. If a step
    drifts beyond its tolerance, nothing is written.
    """
    if (repository is None) == (onnx is None):
        raise click.UsageError("give one of --repository and --onnx")
    notes = Console(stderr=True, highlight=False, markup=False)
    request = ExportRequest(**options)
    make, target = (export_repository, repository) if repository else (export_graph, onnx)
    assert target is not None
    try:
        report = make(request, target, lambda line: notes.print(printable(line), soft_wrap=True))
    except M2FError as error:
        raise click.ClickException(printable(str(error))) from error
    except (OSError, MemoryError) as error:  # a full disk, no temporary folder, too large a model
        raise click.ClickException(printable(reason(error))) from error
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    console = Console(highlight=False, markup=False)
    console.print(ladder_table(report["comparison"]))
    console.print(printable(f"wrote {target}"), soft_wrap=True)
    if repository and options["precision"] != NOT_ON_CPU:
        command = shlex.join(["m2f", "serve", "--model-repository", str(target), "--config-name", "cpu"])
        console.print(printable(f"serve it: {command}"), soft_wrap=True)
# fmt: on


def ladder_table(comparison: dict[str, Any]) -> Table:
    """Return the comparison of each step with the step before, as a table."""
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
