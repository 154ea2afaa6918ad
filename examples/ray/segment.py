"""Segment a folder of images with Ray Data: a row of Parquet for each image, written by all machines of a cluster.

    python segment.py s3://bucket/photos --out s3://bucket/segments --url grpc://a:8001,b:8001 --actors 8

The same command resumes a job that was killed. The Parquet files are the checkpoint: an image is done if it has a row
in a whole file. There is no second record of what is done, so the record and the results cannot differ.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayActorError, RayTaskError

from m2f_cli.options import model_option, parameter_option, timeout_option, url_option
from m2f_client import Client, M2FError, ModelNotFound, Result, ServerError, ServerUnavailable, Timeout
from m2f_client.files import MAX_BYTES
from m2f_client.images import IMAGE_SUFFIXES

INSTANCE = pa.struct(  # the columns of `m2f predict --parquet`
    {
        "category_id": pa.int32(),
        "name": pa.string(),
        "score": pa.float32(),
        "bbox": pa.list_(pa.float32(), 4),  # x, y, width, height
        "area": pa.int64(),
        "counts": pa.string(),  # COCO's compressed RLE, of size [height, width]
    }
)
SCHEMA = pa.schema(  # stated, not inferred: a file without any instance must have the same types as the others
    {
        "file_name": pa.string(),
        "model": pa.string(),
        "parameters": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "instances": pa.list_(INSTANCE),
        "error": pa.string(),
    }
)
STOPPED = re.compile(r"^m2f_client\.client_errors\.(?:ServerUnavailable|ModelNotFound): (.*)", re.MULTILINE)
RECORD = ["file_name", "model", "parameters", "error"]  # the columns that say what is done

TRIES = 4  # requests for an image at which the server fails or is too slow; a restarted model needs some seconds
PAUSE_S = 2.0  # before an image is asked for again
ACTOR_CPUS = 0.25  # an actor mostly waits; whole CPUs would leave none to the tasks that write
LOST_ACTORS = 5  # actors in a row that may fail to start


class Segmenter:
    """Turns a block of file names into a block of rows. Ray runs one in each actor.

    Args:
        filesystem: file system of the images.
        folder: the folder that the file names are relative to.
        client: arguments of the `Client`.
        settings: the columns `model` and `parameters` of each row.
        parameters: request parameters.
        class_names: the model's class names.
        in_flight: requests of this actor at once.
        wait: seconds to wait for a server while none accepts work.
    """

    def __init__(
        self,
        *,
        filesystem: FileSystem,
        folder: str,
        client: Mapping[str, Any],
        settings: Mapping[str, str],
        parameters: Mapping[str, Any],
        class_names: Sequence[str] | None,
        in_flight: int,
        wait: float,
    ) -> None:
        self._filesystem, self._folder = filesystem, folder
        self._client, self._parameters, self._wait = Client(**client), parameters, wait
        self._settings, self._class_names = settings, class_names
        self._pool = ThreadPoolExecutor(in_flight)

    def __call__(self, names: pa.Table) -> pa.Table:
        """Return the rows of a block. An image that fails has a row with `error`.

        Raises:
            ServerUnavailable, ModelNotFound: no server accepted work for `wait` seconds.
        """
        rows = list(self._pool.map(self._row, names["file_name"].to_pylist()))
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _row(self, name: str) -> dict[str, Any]:
        row = {"file_name": name, **self._settings}
        try:
            result = self._predict(self._read(name))
        except (ServerUnavailable, ModelNotFound):
            raise  # every further image would fail likewise
        except (M2FError, OSError) as error:
            return {**row, "error": str(error)}
        height, width = result.size
        instances = [
            {**coco, "name": class_name, **coco.get("segmentation", {})}
            for coco, class_name in zip(result.to_coco(0), result.names(self._class_names), strict=True)
        ]
        return {**row, "width": width, "height": height, "instances": instances}

    def _read(self, name: str) -> bytes:
        with self._filesystem.open_input_stream(f"{self._folder}/{name}", compression=None) as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise OSError(f"larger than {MAX_BYTES >> 20} MiB")
        return bytes(data)

    def _predict(self, data: bytes) -> Result:
        """Return the server's answer. Ask again while no server accepts work, and after an error of the server."""
        end, tries = time.monotonic() + self._wait, 1
        while True:
            try:
                return self._client.predict(data, **self._parameters)
            except (ServerUnavailable, ModelNotFound):
                if time.monotonic() > end:
                    raise
            except (ServerError, Timeout):
                if tries == TRIES:
                    raise
                tries += 1
            time.sleep(PAUSE_S)


def locate(place: str) -> tuple[FileSystem, str]:
    """Return the file system of a path or a URI such as `s3://bucket/folder`, and the path in it."""
    if "://" not in place:
        return LocalFileSystem(), str(Path(place).absolute())
    try:
        filesystem, path = FileSystem.from_uri(place)
    except (ValueError, OSError) as error:
        raise click.UsageError(f"{place}: {error}") from None
    return filesystem, path.rstrip("/")


def list_images(filesystem: FileSystem, folder: str) -> list[str]:
    """Return the images in a folder and below, relative to the folder. Hidden files are no images.

    Raises:
        ClickException: there are no images.
    """
    files = [path.removeprefix(f"{folder}/") for path in _list_files(filesystem, folder)]
    seen = [name for name in files if not any(part.startswith(".") for part in name.split("/"))]
    names = sorted(name for name in seen if name.lower().endswith(IMAGE_SUFFIXES))
    if not names:
        raise click.ClickException(f"no images in {folder}")
    if len(names) < len(seen):
        click.echo(f"m2f: files that are not images and are skipped: {len(seen) - len(names)}", err=True)
    return names


def _list_files(filesystem: FileSystem, folder: str) -> list[str]:
    if isinstance(filesystem, LocalFileSystem):  # Arrow follows links to folders, also in a circle
        return [str(Path(root) / name) for root, _, names in os.walk(folder, onerror=_refuse) for name in names]
    found = filesystem.get_file_info(FileSelector(folder, recursive=True))
    return [info.path for info in found if info.type == FileType.File]


def _refuse(error: OSError) -> None:
    raise error


def read_record(filesystem: FileSystem, folder: str) -> tuple[pa.Table, list[str]]:
    """Return the columns `RECORD` of all rows in a folder, and the incomplete files that a killed job has left.

    Raises:
        UsageError: the folder has Parquet files of something else.
    """
    found = filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
    files = [info.path for info in found if info.path.endswith(".parquet")]
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(partial(_read_whole, filesystem), files))
    whole = [table for table in tables if table is not None]
    incomplete = [path for path, table in zip(files, tables, strict=True) if table is None]
    return pa.concat_tables([SCHEMA.empty_table().select(RECORD), *whole]), incomplete


def _read_whole(filesystem: FileSystem, path: str) -> pa.Table | None:
    try:
        file = pq.ParquetFile(path, filesystem=filesystem)
    except pa.ArrowInvalid:  # no footer: the job was killed while it wrote the file
        return None
    with file:
        if not file.schema_arrow.equals(SCHEMA):
            raise click.UsageError(f"{path} is not a file of this job; choose another --out")
        return file.read(columns=RECORD)


def check_settings(record: pa.Table, settings: Mapping[str, str], out: str) -> None:
    """Refuse a folder with results of another model or of other parameters."""
    for name, value in settings.items():
        for other in set(record[name].unique().to_pylist()) - {value}:
            raise click.UsageError(f"{out} has results with {name} {other}, not {value}; choose another --out")


def run(
    names: Sequence[str], segmenter: Mapping[str, Any], out: tuple[FileSystem, str], *, actors: int, block: int
) -> None:
    """Segment the images on the cluster; every `block` of them gives a Parquet file."""
    blocks = [pa.table({"file_name": names[start : start + block]}) for start in range(0, len(names), block)]
    filesystem, folder = out
    DataContext.get_current().max_consecutive_actor_init_deaths = LOST_ACTORS
    rows = ray.data.from_arrow(blocks).map_batches(
        Segmenter,
        fn_constructor_kwargs=segmenter,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(actors, len(blocks))),
        num_cpus=ACTOR_CPUS,
    )
    try:
        rows.write_parquet(folder, filesystem=filesystem, ray_remote_args={"num_cpus": ACTOR_CPUS}, compression="zstd")
    except RayTaskError as error:  # Ray hands on the text of an exception, not the exception
        text = str(error).strip()
        reason = (STOPPED.findall(text) or text.splitlines())[-1]
        raise click.ClickException(f"{reason}; the same command resumes the job") from error
    except RayActorError as error:
        reason = str(error).strip().splitlines()[-1]
        raise click.ClickException(f"no actor can start; every node needs m2f's client: {reason}") from error


def report(record: pa.Table, names: Iterable[str]) -> bool:
    """Print what is done, and return whether each image has one row and none failed."""
    found = record["file_name"].to_pylist()
    missing, doubles = set(names) - set(found), len(found) - len(set(found))
    failed = [row for row in record.select(["file_name", "error"]).to_pylist() if row["error"] is not None]
    for row in failed[:10]:
        click.echo(f"m2f: {row['file_name']}: {row['error']}", err=True)
    click.echo(f"m2f: {len(found)} images done, {len(failed)} of them failed", err=True)
    if doubles:
        click.echo(f"m2f: {doubles} rows are doubles: two jobs wrote to this folder at once", err=True)
    if missing:
        click.echo(f"m2f: {len(missing)} images have no row: run the same command again", err=True)
    return not (failed or doubles or missing)


@click.command()
@click.argument("source")
@click.option("--out", required=True, metavar="FOLDER", help="Folder or URI for the Parquet files; of this job alone.")
@click.option("--list", "listed", type=click.File(), metavar="FILE", help="Do the images that this file names, one a "
              "line, relative to SOURCE. Default: all images in SOURCE and below.")  # fmt: skip
@url_option
@model_option
@parameter_option
@timeout_option
@click.option("--actors", type=click.IntRange(min=1), default=2, show_default=True, help="Processes that send images.")
@click.option("--in-flight", type=click.IntRange(1, 32), default=8, show_default=True,
              help="Images of an actor in flight at once.")  # fmt: skip
@click.option("--block", type=click.IntRange(min=1), default=500, show_default=True,
              help="Images in a Parquet file. A killed job repeats the unfinished blocks.")  # fmt: skip
@click.option("--wait", type=click.FloatRange(min=0), default=600, metavar="SECONDS", show_default=True,
              help="How long to wait for a server that goes away before the job stops.")  # fmt: skip
def main(
    *,
    source: str,
    out: str,
    listed: Iterable[str] | None,
    url: str,
    model: str,
    extra: tuple[tuple[str, Any], ...],
    timeout: float,
    actors: int,
    in_flight: int,
    block: int,
    wait: float,
) -> None:
    """Segment the images in SOURCE, a folder or a URI such as s3://bucket/photos, on a Ray cluster.

    RAY_ADDRESS names the cluster; without it Ray starts on this machine.
    """
    parameters = dict(extra)
    settings = {"model": model, "parameters": json.dumps(parameters, sort_keys=True)}
    client = {"url": url, "model": model, "timeout": timeout}
    (files, folder), results = locate(source), locate(out)
    try:
        names = list_images(files, folder) if listed is None else list(filter(None, map(str.strip, listed)))
        record, incomplete = read_record(*results)
        check_settings(record, settings, out)
        with Client(**client) as asked:  # a wrong address or parameter is reported before Ray starts
            class_names = asked.class_names
            asked.predict(np.zeros((32, 32, 3), np.uint8), **parameters)
        done = set(record["file_name"].to_pylist())
        left = [name for name in dict.fromkeys(names) if name not in done]
        click.echo(f"m2f: {len(left)} of {len(names)} images to do", err=True)
        for path in incomplete:
            results[0].delete_file(path)
        if left:
            segmenter = {
                "filesystem": files, "folder": folder, "client": client, "settings": settings, "parameters": parameters,
                "class_names": class_names, "in_flight": in_flight, "wait": wait,
            }  # fmt: skip
            run(left, segmenter, results, actors=actors, block=block)
    except (M2FError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except UnicodeError as error:
        raise click.ClickException(f"a file name is not UTF-8: {error}") from error
    sys.exit(0 if report(read_record(*results)[0], names) else 1)


if __name__ == "__main__":
    main()
