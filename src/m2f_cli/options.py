"""Options that several commands share."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import click

from m2f.contract import PUBLIC_MODEL
from m2f.settings import Settings
from m2f_client.client import Client
from m2f_client.client_errors import InvalidRequest
from m2f_client.predict.shards import Shard
from m2f_client.tiled import Tiling
from m2f_client.transports.address import DEFAULT_URL
from m2f_client.transports.protocol import Parameter

MAX_CONCURRENCY = 32  # connections of the HTTP transport

_NOT_PARAMETERS = tuple(inspect.signature(Client.predict).parameters)  # arguments of `predict` itself


class ShardOf(click.ParamType):
    """I/N: the shard with number I, from 0, of N."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        """Return the shard."""
        try:
            return Shard.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class KeyValue(click.ParamType):
    """KEY=VALUE. VALUE is a number, true or false; anything else is text."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Parameter]:
        """Return the key and the typed value."""
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        if key in _NOT_PARAMETERS:
            self.fail(f"{key!r} is not a request parameter", param, ctx)
        if isinstance(getattr(Settings, key, None), str):
            return key, text  # for a text setting, classes=0 is the text "0"
        try:
            parsed = json.loads(text)
        except json.JSONDecodeError:
            return key, text
        return key, parsed if isinstance(parsed, bool | int | float | str) else text


url_option = click.option(
    "--url", default=DEFAULT_URL, show_default=True,
    help="The server: grpc://HOST:PORT or http://HOST:PORT. HOST:PORT is gRPC. The line that m2f serve --json prints "
    "will do, too.",
)  # fmt: skip
model_option = click.option(
    "--model", default=PUBLIC_MODEL, metavar="NAME", show_default=True,
    help="Name of a public model of the server. m2f models lists them.",
)  # fmt: skip
parameter_option = click.option(
    "--parameter", "extra", type=KeyValue(), multiple=True, metavar="KEY=VALUE",
    help="Any other request parameter, e.g. keep_top_k=10. May be repeated.",
)  # fmt: skip
concurrency_option = click.option(
    "--concurrency", type=click.IntRange(1, MAX_CONCURRENCY), default=4, metavar="N", show_default=True,
    help=f"Images, or tiles, in flight at once, up to {MAX_CONCURRENCY}.",
)  # fmt: skip
timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=60, metavar="SECONDS", show_default=True,
    help="Longest wait for an answer or a download.",
)  # fmt: skip


tile_option = click.option(
    "--tile", type=click.IntRange(min=1), metavar="N",
    help="Cut larger pictures into tiles of N x N pixels, a request each. An object that several tiles see is one "
    "instance.",
)  # fmt: skip
overlap_option = click.option(
    "--overlap", type=float, metavar="PART",
    help="Part of a tile's side that it shares with its neighbour, 0 to less than 1. Default: 0.2. Needs --tile.",
)  # fmt: skip
whole_option = click.option(
    "--whole", is_flag=True,
    help="Also send the picture as a whole, reduced, for objects that no tile sees whole. Needs --tile.",
)  # fmt: skip


def tiling_of(tile: int | None, overlap: float | None, whole: bool) -> Tiling | None:
    """Return how pictures are cut; None without --tile."""
    if tile is None:
        for name, is_given in (("--overlap", overlap is not None), ("--whole", whole)):
            if is_given:
                raise click.UsageError(f"{name} needs --tile N")
        return None
    try:
        return Tiling(tile, 0.2 if overlap is None else overlap, whole)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None


def refuse_same_file(*files: tuple[str, Path | None]) -> None:
    """Refuse two files, each with what it is called, that are the same: writing one would destroy the other."""
    seen: dict[Path, str] = {}
    for name, path in files:
        if path is not None and (other := seen.setdefault(path.resolve(), name)) != name:
            raise click.UsageError(f"{other} and {name} are the same file")


def _need_pyarrow(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
    """Refuse the option before hours of work if its package is missing, or does not fit to another one."""
    if value is not None:
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise click.UsageError(f"--parquet needs: pip install 'm2f[parquet]' ({error})") from None
    return value


parquet_option = click.option(
    "--parquet", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", callback=_need_pyarrow,
    help="Write a table with a row for each instance to this file. An image without instances, or one that failed, has "
    "a row too.",
)  # fmt: skip
