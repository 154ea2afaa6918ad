"""A result as objects of supervision and pandas, which the extra `convert` installs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.errors import M2FError
from m2f_client.converters.result_like import ResultLike

_MAX_DENSE = 1 << 30  # bytes


def detections(result: ResultLike, class_names: Sequence[str] | None = None) -> Any:
    """Return a `supervision.Detections`.

    Its `xyxy` are `boxes` float32 [K, 4], `confidence` is `scores` float32 [K], `class_id` is `labels` int64 [K],
    `mask` bool [K, H, W] (None without masks), `data["class_name"]` str [K]; `tracker_id` is None. Masks of more than
    1 GiB altogether are a `supervision.CompactMask` instead, which supervision uses in the same way.

    Args:
        result: needs `scores`, `labels` and `boxes`; the masks are used if present.
        class_names: the model's class names; None: class numbers.

    Raises:
        OutputNotRequested: one of the needed outputs is missing.
        M2FError: supervision is not installed.
    """
    supervision = _import("supervision")
    return supervision.Detections(
        xyxy=result.boxes,
        mask=_masks(result, supervision) if result.has_masks else None,
        confidence=result.scores,
        class_id=result.labels.astype(int),
        data={"class_name": np.array(result.names(class_names), dtype=str)},
    )


def _masks(result: ResultLike, supervision: Any) -> Any:
    height, width = result.size
    if len(result) * height * width <= _MAX_DENSE:
        return result.masks.astype(bool)
    crops = [result.crop(index) for index in range(len(result))]
    return supervision.CompactMask(
        [_lengths(mask) for _, _, mask in crops],
        np.array([mask.shape for _, _, mask in crops], np.int32),
        np.array([(x, y) for x, y, _ in crops], np.int32),
        (height, width),
    )


def _lengths(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Return the lengths of the runs of a mask down its columns, zeros first."""
    pixels = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(pixels, prepend=0))
    return np.diff(edges, prepend=0, append=len(pixels)).astype(np.int32)


def data_frame(result: ResultLike, class_names: Sequence[str] | None = None) -> Any:
    """Return a `pandas.DataFrame`, one row for each instance: class_name, label, score, x1, y1, x2, y2, area, query.

    Args:
        result: needs `scores`, `labels` and `boxes`; `areas` and `queries` are used if present.
        class_names: the model's class names; None: class numbers.

    Raises:
        OutputNotRequested: one of the needed outputs is missing.
        M2FError: pandas is not installed.
    """
    pandas = _import("pandas")
    columns: dict[str, Any] = {
        "class_name": pandas.Series(result.names(class_names), dtype="str"),
        "label": result.labels,
        "score": result.scores,
    }
    columns.update(zip(("x1", "y1", "x2", "y2"), result.boxes.T, strict=True))
    for column, output in (("area", "areas"), ("query", "queries")):
        if output in result.outputs:
            columns[column] = result.outputs[output]
    return pandas.DataFrame(columns)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise M2FError(f"this needs {name}: pip install 'm2f[convert]' (no module named {error.name!r})") from error
