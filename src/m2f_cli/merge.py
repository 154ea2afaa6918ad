"""`m2f merge`: make one file of the journals of all shards."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from m2f.errors import M2FError
from m2f_cli.options import parquet_option, refuse_same_file
from m2f_client.predict.documents import write_instances, write_whole
from m2f_client.predict.parquet import write_parquet
from m2f_client.predict.parts import Parts
from m2f_client.printable import complain


@click.command()
@click.argument("parts", metavar="JOURNAL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the instances of all images to this file (COCO).")  # fmt: skip
@parquet_option
def merge(*, parts: tuple[Path, ...], out: Path | None, parquet: Path | None) -> None:
    """Merge the journals of all shards.

    A JOURNAL is the --jsonl file of one m2f predict --shard, or the instances.jsonl in its --out folder. Each image
    must be in one journal, once: a missing or incomplete shard is refused by name, and so is an image that is there
    twice or in the wrong shard. Images that failed are among the `errors` of the COCO file, and have an `error` in the
    table.

    Exit code: 0 merged; 1 refused; 2 wrong usage.
    """
    if out is None and parquet is None:
        raise click.UsageError("name the output: --out FILE, --parquet FILE or both")
    refuse_same_file(*((str(part), part) for part in dict.fromkeys(parts)), ("--out", out), ("--parquet", parquet))
    try:
        merged = Parts(parts)
        if out is not None:
            write_whole(out, lambda path: _write_coco(path, merged))
        if parquet is not None:
            write_whole(parquet, lambda path: write_parquet(path, merged))
    except M2FError as error:
        complain(str(error))
        sys.exit(1)
    failed = f", {merged.failed:,} of them failed" if merged.failed else ""
    click.echo(f"{_count(merged.images, 'image')} of {_count(len(merged.parts), 'shard')}{failed}")
    for written in filter(None, (out, parquet)):
        click.echo(f"wrote {written}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _write_coco(path: Path, parts: Parts) -> None:
    with path.open("w", encoding="utf-8") as stream:
        write_instances(stream, parts, parts.origin)
