"""`m2f models`: the public models of a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m2f.errors import M2FError
from m2f_cli.options import timeout_option, url_option
from m2f_client.client import Client
from m2f_client.client_errors import InvalidAddress
from m2f_client.printable import complain, printable
from m2f_client.transports.address import Endpoint
from m2f_client.transports.connect import connect
from m2f_client.transports.served_models import ServedModel, served_models
from m2f_client.transports.waiting import run_blocking

_SHOWN = 3  # class names in a row of the table

Found = Mapping[ServedModel, tuple[str, ...] | None]
"""Class names by model; None if the model states none, or does not answer."""


@click.command()
@url_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@timeout_option
def models(*, url: str, as_json: bool, timeout: float) -> None:
    """List the public models of a server.

    Their names are what --model takes. Each model is shown with its classes, the size (height x width) of its engine's
    input, what runs the engine, and the engine's version. Each model is sent one tiny image, to read its class names.
    Models that do not answer are reported on standard error.

    Exit code: 0 every model answered; 1 a model failed, or the server does not tell its models; 2 wrong usage.
    """
    try:
        connection = connect(Endpoint.parse(url))
    except InvalidAddress as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    found: dict[ServedModel, tuple[str, ...] | None] = {}
    failed = False
    with Client(transport=connection):
        try:
            listed = run_blocking(served_models(connection, timeout))
        except M2FError as error:
            complain(str(error))
            sys.exit(1)
        for model in listed:
            try:
                found[model] = Client(transport=connection, model=model.name, timeout=timeout).class_names
            except M2FError as error:
                complain(f"{model.name}: {error}")
                found[model], failed = None, True
    click.echo(_as_json(found)) if as_json else _show(found)
    sys.exit(failed)


def _as_json(found: Found) -> str:
    return json.dumps([{**asdict(model), "classes": classes} for model, classes in found.items()])


def _show(found: Found) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "size", "engine", "version", "classes"):
        table.add_column(column, no_wrap=column == "model")
    for model, classes in found.items():
        size = "any" if model.size is None else "x".join(map(str, model.size))
        cells = (model.name, size, model.engine or "-", ", ".join(model.versions), _listed(classes))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)


def _listed(classes: tuple[str, ...] | None) -> str:
    if classes is None:
        return "-"
    more = ", ..." if len(classes) > _SHOWN else ""
    return f"{len(classes)}: {', '.join(classes[:_SHOWN])}{more}"
