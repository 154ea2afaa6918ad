"""`m2f predict`: images to a server, then a table, overlays, COCO JSON, panoptic PNGs and raw logits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

from m2f.contract import PANOPTIC_OUTPUTS, RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f.settings import Settings
from m2f_client import draw
from m2f_client.address import DEFAULT_URL
from m2f_client.client import Client
from m2f_client.coco import Document, PanopticDocument, panoptic_pixels
from m2f_client.errors import InvalidAddress, M2FError, ModelNotFound, ServerUnavailable, UnreadableImage
from m2f_client.result import Result
from m2f_client.table import instances_table
from m2f_client.transport import Parameter

FATAL = (ServerUnavailable, ModelNotFound)  # the next image would fare no better


class KeyValue(click.ParamType):
    """KEY=VALUE, where VALUE is a number, true or false, or else text."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Parameter]:
        """Return key and typed value."""
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        if isinstance(getattr(Settings, key, None), str):
            return key, text  # a text setting: classes=0 is the text "0"
        try:
            parsed = json.loads(text)
        except json.JSONDecodeError:
            return key, text
        return key, parsed if isinstance(parsed, bool | int | float | str) else text


@dataclass(frozen=True)
class Job:
    """What to do with each image.

    Attributes:
        client: the connection.
        parameters: request parameters.
        names: the model's class names.
        out: folder for overlays, JSON and logits; None writes nothing.
        raw: save the logits too.
        panoptic: save the panoptic segmentation too, and list it here.
    """

    client: Client
    parameters: dict[str, Parameter]
    names: Sequence[str] | None
    out: Path | None
    raw: bool
    panoptic: PanopticDocument | None

    def run(self, path: Path, stem: str, document: Document) -> tuple[Result, str]:
        """Do one image; return its result and a line for the foot of its table."""
        data = read(path)
        outputs = STRUCTURED_OUTPUTS + (RAW_OUTPUTS if self.raw else ()) + (PANOPTIC_OUTPUTS if self.panoptic else ())
        result = self.client.predict(data, outputs=outputs, **self.parameters)
        image_id = document.add(str(path), result)  # stays even if it cannot be drawn
        written = ""
        if self.out is not None:
            target = self.out / f"{stem}_overlay.png"
            picture = draw.overlay(draw.open_upright(data), result, self.names)
            save(target, lambda: picture.save(target))
            written = str(target)
            if self.raw:
                logits = {name: result.outputs[name] for name in RAW_OUTPUTS}
                archive = self.out / f"{stem}.npz"
                save(archive, lambda: np.savez(archive, **logits))
                written += f", {archive}"
            if self.panoptic is not None:
                png = self.out / f"{stem}_panoptic.png"
                save(png, lambda: Image.fromarray(panoptic_pixels(result.panoptic)).save(png))
                self.panoptic.add(image_id, str(path), png.name, result)
                written += f", {png}"
        return result, written


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--url", default=DEFAULT_URL, show_default=True, help="The server: grpc://HOST:PORT or http://HOST:PORT.")
@click.option("--score-threshold", type=float, help="Least score (0 to 1). Default: the server's.")
@click.option("--classes", help="Only these classes, by index or name, comma-separated.")
@click.option(
    "--parameter", "extra", type=KeyValue(), multiple=True, metavar="KEY=VALUE",
    help="Any other request parameter, e.g. keep_top_k=10. May be repeated.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write STEM_overlay.png for each image, and instances.json (COCO), to this folder.",
)  # fmt: skip
@click.option("--raw", is_flag=True, help="Also write STEM.npz with cls_logits and mask_logits. Needs --out.")
@click.option(
    "--panoptic", is_flag=True,
    help="Also write STEM_panoptic.png for each image, and panoptic.json (COCO panoptic). Needs --out.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (COCO) instead of tables.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
              help="Seconds to wait for an answer.")  # fmt: skip
@click.pass_obj
def predict(
    open_client: Callable[..., Client] | None,
    *,
    images: tuple[Path, ...],
    url: str,
    score_threshold: float | None,
    classes: str | None,
    extra: tuple[tuple[str, Parameter], ...],
    out: Path | None,
    raw: bool,
    panoptic: bool,
    as_json: bool,
    timeout: float,
) -> None:
    """Find the instances of images.

    Reads JPEG, PNG and WebP. A file that does not work is named on standard error and the others go on; the exit
    code is 1 then.
    """
    if (raw or panoptic) and out is None:
        raise click.UsageError(f"--{'raw' if raw else 'panoptic'} needs --out DIR")
    named = {"score_threshold": score_threshold, "classes": classes}
    parameters = dict(extra) | {name: value for name, value in named.items() if value is not None}
    try:
        client = (open_client or Client)(url, timeout=timeout)  # a test hands in its own as click's `obj`
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    with client:
        sys.exit(
            predict_all(client, images, parameters=parameters, out=out, raw=raw, panoptic=panoptic, as_json=as_json)
        )


def predict_all(
    client: Client,
    images: Sequence[Path],
    *,
    parameters: dict[str, Parameter],
    out: Path | None = None,
    raw: bool = False,
    panoptic: bool = False,
    as_json: bool = False,
) -> int:
    """Do all images and print or write what was asked for; return the exit code."""
    console = None if as_json else Console()
    try:
        if out is not None:
            save(out, lambda: out.mkdir(parents=True, exist_ok=True))
        names = client.class_names
        segments = PanopticDocument(names, server=client.url) if panoptic else None
        job = Job(client=client, parameters=parameters, names=names, out=out, raw=raw, panoptic=segments)
    except M2FError as error:
        return complain(str(error))
    document = Document(job.names, server=client.url)
    code = work_through(job, images, document, console)
    if out is not None:
        try:
            write_json(out / "instances.json", document, console)
            if segments is not None:
                write_json(out / "panoptic.json", segments, console)
        except M2FError as error:
            code = complain(str(error))
    if as_json:
        click.echo(as_text(document))
    return code


def write_json(target: Path, document: Document | PanopticDocument, console: Console | None) -> None:
    """Write a document, and say so."""
    save(target, lambda: target.write_text(as_text(document) + "\n", encoding="utf-8"))
    if console is not None:
        console.print(Text(f"wrote {target}", style="dim"))


def as_text(document: Document | PanopticDocument) -> str:
    """Return a document as JSON."""
    return json.dumps(document.to_dict(), indent=1)


def work_through(job: Job, images: Sequence[Path], document: Document, console: Console | None) -> int:
    """Do one image after the other; return 1 if one of them failed, else 0."""
    code = 0
    for path, stem in zip(images, unique_stems(images, job.out), strict=True):
        try:
            result, written = job.run(path, stem, document)
        except M2FError as error:
            code = complain(f"{path}: {error}")
            document.add_error(str(path), str(error))
            if isinstance(error, FATAL):
                break
            continue
        if console is not None:
            console.print(instances_table(str(path), result, job.names, written))
    return code


def unique_stems(images: Sequence[Path], out: Path | None) -> list[str]:
    """Return a file stem for each image, such that no two outputs meet and none overwrites an input."""
    inputs = {path.resolve() for path in images}
    endings = ("_overlay.png", "_panoptic.png", ".npz")
    stems: list[str] = []
    taken: set[str] = set()
    for path in images:
        stem, number = path.stem, 1
        while stem.casefold() in taken or (
            out is not None and inputs & {(out / f"{stem}{ending}").resolve() for ending in endings}
        ):
            number += 1
            stem = f"{path.stem}-{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def read(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        UnreadableImage: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(str(error.strerror)) from error


def save(target: Path, write: Callable[[], object]) -> None:
    """Write a file, with a failure as M2FError: the disk may be full or the folder closed."""
    try:
        write()
    except OSError as error:
        raise M2FError(f"cannot write {target}: {error.strerror or error}") from error


def complain(message: str) -> int:
    """Say what went wrong on standard error; return the exit code."""
    click.echo(f"m2f: {message}", err=True)
    return 1
