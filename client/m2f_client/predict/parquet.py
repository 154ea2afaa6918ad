"""The instances of a run as a Parquet table, written in groups of rows: memory does not grow with the number of images.

A row is an instance. An image without instances has one row, and a failed image has one with its `error`: no image is
missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from m2f_client.predict.lines import Line

GROUP = 10_000  # rows that are held in memory
_OF_IMAGE = ("file_name", "model", "width", "height", "error")
_OF_INSTANCE = ("category_id", "name", "score", "bbox", "area")


def write_parquet(path: Path, lines: Iterable[Line]) -> None:
    """Write the lines of a journal as a table.

    Args:
        path: the file.
        lines: lines of a journal.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow as pa  # noqa: PLC0415 (an extra)
    import pyarrow.parquet as pq  # noqa: PLC0415

    schema = pa.schema(
        [
            ("file_name", pa.string()),
            ("model", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("category_id", pa.int32()),
            ("name", pa.string()),
            ("score", pa.float32()),
            # not of a fixed size: PyArrow cannot read a file with null lists of a fixed size (25.0)
            ("bbox", pa.list_(pa.float32())),
            ("area", pa.int64()),
            ("counts", pa.string()),
            ("error", pa.string()),
        ]
    )
    rows = _rows(lines)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, GROUP)):
            writer.write_batch(pa.RecordBatch.from_pylist(group, schema=schema))


def _rows(lines: Iterable[Line]) -> Iterator[dict[str, Any]]:
    for line in lines:
        image = {name: _cell(line.get(name)) for name in _OF_IMAGE}
        for instance in line.get("instances") or [{}]:
            counts = _cell(instance.get("segmentation", {}).get("counts"))
            yield {**image, **{name: _cell(instance.get(name)) for name in _OF_INSTANCE}, "counts": counts}


def _cell(value: Any) -> Any:
    """Return a value with text as Parquet takes it: UTF-8, where a file's name may be any bytes."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value
