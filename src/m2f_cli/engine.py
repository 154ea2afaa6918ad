"""`m2f engine`: build the TensorRT engine of an exported model, on the GPU that will serve it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from m2f.errors import M2FError
from m2f_export.export_errors import reason
from m2f_export.served_engine import build_in_repository

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("repository", type=PATH)
@click.option("--model", "name", metavar="NAME", help="Name of the export, if the repository has several.")
@click.option("--target", help="Triton container (26.07-py3) or TensorRT version (10.14.1) that will load the engine.")
@click.option(
    "--timing-cache",
    type=PATH,
    help="Keep TensorRT's kernel times in this file: later builds on this GPU are faster.  "
    "[default: timing.cache in the engine's folder]",
)
@click.option(
    "--image",
    "images",
    type=PATH,
    multiple=True,
    help="Compare the engine with the ONNX on this picture; may be repeated.  [default: the export's pictures]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def engine(repository: Path, *, as_json: bool, **options: Any) -> None:
    """Build the TensorRT engine of an exported model, where it will run.

    REPOSITORY is a model repository that m2f export made. Run this on the GPU that will serve it, with the TensorRT of
    the server, such as inside its container; neither PyTorch nor mmdetection is needed. The engine is compared with the
    ONNX on pictures and put in place only if it agrees.

    Without TensorRT, TensorRT-RTX builds, also on a machine without a GPU. That shows that TensorRT takes the graph;
    Triton cannot load the engine.
    """
    try:
        made = build_in_repository(repository, say=lambda line: click.echo(line, err=True), **options)
    except M2FError as error:
        raise click.ClickException(str(error)) from error
    except (OSError, MemoryError) as error:  # a full disk, too large a model
        raise click.ClickException(reason(error)) from error
    if as_json:
        click.echo(json.dumps(made, indent=2))
        return
    for step in (made["comparison"] or {"steps": ()})["steps"]:
        click.echo(
            f"{step['name']}: {step['matched']}/{step['instances']} instances matched, {step['extra']} extra, mask IoU "
            f"{step['iou']:.4f}; logits differ by at most {step['cls_max']:.1e} and {step['mask_max']:.1e}"
        )
    click.echo(
        made["target_message"] or f"wrote the engine; it loads in TensorRT {made['version']} on this kind of GPU"
    )
